"""Export tasks with a source and a target text: an encoder graph, and a decoder graph with its cache.

    encoder.onnx   src (, source_mask) (R, S) int64 -> keys and values (R, H, S, D) of the source, per decoder layer
    decoder.onnx   one position of every hypothesis, with the cache as inputs and outputs

The decoder reads R rows with K hypotheses each. tokens, parents (R, K) int64: hypothesis k of row r continues number
parents[r, k] of the N hypotheses before. So a beam is reordered, and finished rows leave, without a copy outside the
graph. source_mask (R, S) int64, 1 = token; the source's keys and values (R, H, S, D); the target's so far (N, H, t, D).
Outputs: logits (R, K, V), the target's keys and values (R * K, H, t + 1, D), and those of `add_candidates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainer.evaluation.languages import bleu_of
from trainer.export.artifact import Array, Artifact
from trainer.export.onnx import Axes, write_graph
from trainer.export.parity_checks import Check, Comparison
from trainer.export.task_export import LabelProbabilities, TaskExport
from trainer.task.base import Batch, Example, Record
from trainer.tasks.generation_export import add_candidates, compare_texts
from trainer.tasks.pairs_model_program import ModelTranslator
from trainer.tasks.pairs_program import Translator


class PairsExport(LabelProbabilities, TaskExport):
    program = Translator
    own_programs: ClassVar[dict[str, type[Artifact]]] = {"ctranslate2": ModelTranslator}
    beams = (1, 5)
    auto_class = "AutoModelForSeq2SeqLM"

    # -- the artifact --------------------------------------------------------------------------------------------------

    def graphs(self, model: Any, batch: Batch) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        """Return the encoder, the decoder and the encoder's inputs in a batch; see the top of this module."""
        raise NotImplementedError

    def labels(self, example: Example) -> list[int]:
        """Token ids that the decoder is to predict."""
        raise NotImplementedError

    def write_graphs(self, model: Any, folder: Path) -> None:
        encoder, decoder, read = self.graphs(model, self.task.collate(self.task.encode(self.task.toy_rows[:2])))
        src = read["src"]
        with torch.no_grad():
            source = list(encoder(*read.values()))
        kinds = [f"{kind}_{i}" for i in range(len(source) // 2) for kind in ("key", "value")]
        of_source, of_target = [f"source_{kind}" for kind in kinds], [f"target_{kind}" for kind in kinds]
        per_row: Axes = {0: "batch", 1: "source"}
        axes: Any = (per_row,) * len(read)
        write_graph(encoder, tuple(read.values()), folder / "encoder.onnx", list(read), of_source, axes)

        beam, length = 3, 5
        rows, heads, _, size = source[0].shape
        tokens = torch.full((rows, beam), int(self.task.tokenizer.eos_token_id))
        parents = torch.arange(rows * beam).view(rows, beam)
        target = [torch.zeros(rows * beam + 1, heads, length, size) for _ in of_target]
        per_beam: Axes = {0: "batch", 1: "beam"}
        of_tensors = [{0: "batch", 2: "source"} for _ in of_source], [{0: "hypotheses", 2: "length"} for _ in of_target]
        write_graph(
            decoder,
            (tokens, parents, torch.ones_like(src), source, target),
            folder / "decoder.onnx",
            ["tokens", "parents", "source_mask", *of_source, *of_target],
            ["logits", *(f"new_{name}" for name in of_target)],
            (per_beam, per_beam, per_row, *of_tensors),
        )
        add_candidates(folder / "decoder.onnx", int(self.task.tokenizer.eos_token_id))

    def stock_labels(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {"labels": [self.labels(example) for example in examples]}

    def settings(self, model: Any) -> dict[str, Any]:
        evaluation = self.task.recipe.evaluation
        return {
            "eos_id": self.task.eos_id,
            "vocab_size": len(self.task.tokenizer_of("trg")),
            "beam_size": evaluation.beam_size,
            "length_penalty": evaluation.length_penalty,
            "max_length_factor": evaluation.max_length_factor,
        }

    # -- comparisons ---------------------------------------------------------------------------------------------------

    def logit_count(self, example: Example) -> int:
        return len(self.task.tokenizer_of("trg")) * self.task.length(example)

    def unpadded(self, logits: Array, examples: Sequence[Example]) -> list[Array]:
        """(T, V) along each target"""
        return [row[: len(self.labels(example))] for row, example in zip(logits, examples, strict=True)]

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        """Feed the target token by token, as the search does."""
        fixed, cache = artifact.start([self.encoded(example)[0] for example in examples])
        labels = [self.labels(example) for example in examples]
        inputs = artifact.pad([[artifact.settings["start_id"], *ids[:-1]] for ids in labels], 0)
        parents, steps = np.arange(len(examples))[:, None], []
        for step in range(max(map(len, labels))):
            feeds = {**fixed, "count": np.array([1])}
            (logits,), cache = artifact.run_decoder(["logits"], inputs[:, step : step + 1], parents, feeds, cache)
            steps.append(logits[:, 0])
        return self.unpadded(np.stack(steps, 1), examples)

    def artifact_log_probs(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        """Return log probabilities of the target of each example, by an artifact without logits."""
        sources = [self.encoded(example)[0] for example in examples]
        return list(map(np.array, artifact.log_probs(sources, [self.labels(example) for example in examples])))

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        recipe = self.task.recipe
        return compare_translations(comparison, recipe.task.trg_language, recipe.evaluation.bleu_tokenizer)


def compare_translations(
    comparison: Comparison, language: str | None, tokenizer: str = "auto"
) -> tuple[dict[str, Check], list[Record]]:
    """Compare predicted texts with each other, and the BLEU of both with the targets in `language`."""
    c, scorer = comparison, bleu_of(language, tokenizer)
    systems = [answer["prediction"] for answer in c.answers], [row.answer["prediction"] for row in c.rows]
    targets = [row.target for row in c.rows]
    # inner methods of sacreBLEU, as in trainer.evaluation.metrics: statistics of the same rows for both systems
    tables = [np.array(scorer._extract_corpus_statistics(texts, [targets]), float) for texts in systems]
    half = tables[0].shape[1]

    def bleu(sums: Sequence[float]) -> float:
        return float(scorer._compute_score_from_stats(list(sums)).score)

    identical, worst = compare_texts(c)
    score = c.paired(
        [bleu(table.sum(0).tolist()) for table in tables],
        limit=c.limits.bleu if c.exact else c.limits.int8_bleu,
        table=np.concatenate(tables, 1),
        difference=lambda sums: bleu(sums[:half]) - bleu(sums[half:]),
    )
    return {"identical": identical, "bleu": score}, worst
