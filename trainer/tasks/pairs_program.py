"""Lines of stdin to JSON lines: the target text of each source text, by the ONNX graphs in this folder.

    python run.py < texts.txt
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone. Shapes: R unfinished rows, K hypotheses of each, C candidates of a
hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.export.artifact import Array, Artifact


class Translator(Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        return ([*self.settings["before"], *self.ids(sides[0])[: self.room], *self.settings["after"]],)

    @property
    def room(self) -> int:
        return self.settings["max_length"] - len(self.settings["before"]) - len(self.settings["after"])

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for ids, score in self.search([src for (src,) in examples]):
            yield {"prediction": self.tokenizer.decode(ids, skip_special_tokens=True), "score": score}

    def start(self, sources: Sequence[Sequence[int]]) -> tuple[dict[str, Array], dict[str, Array]]:
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

    def step(
        self, outputs: Sequence[str], tokens: Array, parents: Array, fixed: dict[str, Array], cache: dict[str, Array]
    ) -> tuple[list[Array], dict[str, Array]]:
        """Run the decoder: hypothesis k of row r continues number parents[r, k] of the step before."""
        names = [*outputs, *(f"new_{name}" for name in cache)]
        tensors = self.sessions["decoder"].run(names, {"tokens": tokens, "parents": parents, **fixed, **cache})
        return tensors[: len(outputs)], dict(zip(cache, tensors[len(outputs) :], strict=True))

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """Ids and score of the best hypothesis of each row. A beam of 1 is greedy search.

        The score is the sum of log probabilities over length ** length_penalty, <eos> included. A row has 2K
        candidates: an <eos> among the best K finishes a hypothesis, and the best K others are searched further.
        """
        s, beam, eos, length = self.settings, self.settings["beam_size"], self.settings["eos_id"], 0
        fixed, cache = self.start(sources)
        rows: Array = np.arange(len(sources))
        lengths: Array = fixed["source_mask"].sum(1) - s["prefix_length"]
        limits = (lengths.astype(np.float32) * np.float32(s["max_length_factor"]) + 10).astype(np.int64)
        limits = np.minimum(limits, s["longest"])
        best: list[tuple[list[int], float]] = [([], -np.inf)] * len(rows)
        kept: Array = np.full((len(rows), beam), -np.inf, np.float32)  # the K best finished scores, best first
        scores: Array = np.zeros((len(rows), 1), np.float32)
        history: Array = np.zeros((len(rows), 1, 0), np.int64)
        tokens, parents = np.full((len(rows), 1), s["start_id"]), rows[:, None]
        while len(rows):
            length += 1
            (gains, ids), cache = self.candidates(tokens, parents, fixed, cache, length >= limits)
            width = ids.shape[2]
            gains, ids = (x.reshape(len(rows), -1) for x in (gains + scores[..., None], ids))
            order = np.argsort(-gains, 1, kind="stable")[:, : 2 * beam]  # ties: the first parent, the smaller id
            gains, ids, parent = take(gains, order), take(ids, order), order // width
            penalty = np.float32(length ** s["length_penalty"])

            closed = np.where(ids == eos, gains / penalty, -np.inf)[:, :beam]
            for r in np.flatnonzero(closed.max(1) > kept[:, 0]):
                best[rows[r]] = (history[r, parent[r, closed[r].argmax()]].tolist(), float(closed[r].max()))
            kept = -np.sort(-np.concatenate([kept, closed], 1), 1)[:, :beam]

            gains = np.where(ids == eos, -np.inf, gains)
            order = np.argsort(-gains, 1, kind="stable")[:, :beam]
            scores, ids, parent = take(gains, order), take(ids, order), take(parent, order)
            beams, every = history.shape[1], np.arange(len(rows))[:, None]
            history = np.concatenate([history[every, parent], ids[..., None]], 2)
            stay = scores[:, 0] / penalty > kept[:, -1]
            tokens, parents = ids[stay], (parent + every * beams)[stay]
            rows, limits, kept, scores, history = (x[stay] for x in (rows, limits, kept, scores, history))
            fixed = fixed if stay.all() else {name: x[stay] for name, x in fixed.items()}
        return best

    def candidates(
        self, tokens: Array, parents: Array, fixed: dict[str, Array], cache: dict[str, Array], last: Array
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        """Log probabilities and ids (R, K, C) of the best next tokens; in rows with last (R) only <eos>."""
        banned = self.settings["banned"]
        count = np.array([min(2 * self.settings["beam_size"] + len(banned), self.settings["vocab_size"])])
        outputs, feeds = ("log_probs", "ids", "closing"), {**fixed, "count": count}
        (gains, ids, closing), cache = self.step(outputs, tokens, parents, feeds, cache)
        gains[np.isin(ids, banned)] = -np.inf
        gains[last], ids[last, :, 0], gains[last, :, 0] = -np.inf, self.settings["eos_id"], closing[last]
        return (gains, ids), cache


def take(values: Array, order: Array) -> Array:
    return np.take_along_axis(values, order, 1)
