"""Lines of stdin to JSON lines: the target text of each source text, by the graphs in this folder.

    python run.py < texts.txt
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.beam_search import BeamSearch
from trainer.export.artifact import Array
from trainer.tasks.pairs_reader import PairsReader

Cache = dict[str, Array]  # keys and values of the target


class Translator(BeamSearch, PairsReader):
    def start(self, sources: Sequence[Sequence[int]]) -> tuple[dict[str, Array], Cache]:
        """Encode the sources. Return the decoder's fixed inputs and the empty cache of R hypotheses."""
        encoder, src = self.sessions["encoder"], self.pad(sources, self.settings["pad_id"])
        read = {"src": src, "source_mask": self.pad([[1] * len(ids) for ids in sources], 0)}
        feeds = {tensor.name: read[tensor.name] for tensor in encoder.get_inputs()}
        if feeds.keys() != read.keys():  # this encoder recognizes padding by its id
            read["source_mask"] = (src != self.settings["pad_id"]).astype(np.int64)
        names = [output.name for output in encoder.get_outputs()]
        source = dict(zip(names, encoder.run(names, feeds), strict=True))
        shapes = {i.name: i.shape for i in self.sessions["decoder"].get_inputs() if i.name.startswith("target_")}
        cache = {name: np.zeros((len(src), s[1], 0, s[3]), np.float32) for name, s in shapes.items()}
        return {"source_mask": read["source_mask"], **source}, cache

    def run_decoder(
        self, outputs: Sequence[str], tokens: Array, parents: Array, fixed: dict[str, Array], cache: Cache
    ) -> tuple[list[Array], Cache]:
        """Return the outputs of these names, and the grown cache; see `step`."""
        names = [*outputs, *(f"new_{name}" for name in cache)]
        tensors = self.sessions["decoder"].run(names, {"tokens": tokens, "parents": parents, **fixed, **cache})
        return tensors[: len(outputs)], dict(zip(cache, tensors[len(outputs) :], strict=True))

    def step(
        self, tokens: Array, parents: Array, fixed: dict[str, Array], cache: Cache, count: int
    ) -> tuple[Array, Array, Array, Cache]:
        inputs = {**fixed, "count": np.array([min(count, self.settings["vocab_size"])])}
        outputs = ("log_probs", "ids", "closing")
        (log_probs, ids, closing), cache = self.run_decoder(outputs, tokens, parents, inputs, cache)
        return log_probs, ids, closing, cache

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """Ids and score of the best hypothesis of each row."""
        fixed, cache = self.start(sources)
        return self.search_rows(fixed, cache, self.limits(fixed["source_mask"].sum(1)))
