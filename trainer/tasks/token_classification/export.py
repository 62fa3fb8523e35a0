"""Export token classifiers: one graph of the logits of every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.export.artifact import Array
from trainer.export.onnx import write_graph
from trainer.export.parity_checks import Check, Comparison, largest_gap
from trainer.export.task_export import LabelProbabilities, TaskExport
from trainer.task.base import Example, Record
from trainer.tasks.classification.export import ClassifierGraph
from trainer.tasks.token_classification.metrics import counts, key_of, summary
from trainer.tasks.token_classification.program import EntityFinder
from trainer.tasks.token_classification.task import INPUTS

PARTS = ("input_ids", "heads", "starts", "ends", "text", "tokens")


class TokenClassificationExport(LabelProbabilities, TaskExport):
    program = EntityFinder
    program_name = "token_classification"
    beams = (1,)
    compiles = True
    auto_class = "AutoModelForTokenClassification"

    def stock_reads(self, example: Example) -> bool:
        """Return whether a row is one window: stock classes know no windows."""
        return len(self.task.windows(example)) == 1

    def stock_ids_agree(self, example: Example, ids: Sequence[int]) -> bool:
        """Return True: the ids are given, since each word is cleaned and tokenized alone."""
        return True

    def stock_labels(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the ids of rows, and each label in turn for their tokens."""
        (rows, count) = (
            [self.task.pack([example])[0][0]["input_ids"] for example in examples],
            len(self.task.settings.names),
        )
        return {"input_ids": rows, "labels": [[place % count for place in range(len(row))] for row in rows]}

    def write_graphs(self, model: Any, folder: Path) -> None:
        batch = self.task.collate(self.task.encode(self.task.toy_rows[:2]))
        axes = tuple({0: "batch", 1: "length"} for _ in INPUTS)
        inputs = tuple(batch[name] for name in INPUTS)
        write_graph(ClassifierGraph(model, INPUTS), inputs, folder / "model.onnx", INPUTS, ["logits"], (axes,))

    def settings(self, model: Any) -> dict[str, Any]:
        """Return what run.py reads. Words are cleaned, also those of a prepared corpus, which holds raw texts."""
        return {
            "labels": self.task.settings.names,
            "layout": [list(part) for part in self.task.layout.parts],
            "inputs": list(INPUTS),
            "overlap": self.task.settings.overlap,
            "word_cleaning": self.task.recipe.data.cleaning,
        }

    def encoded(self, example: Example) -> tuple[list[int], ...]:
        return tuple(example[name] for name in PARTS)

    def logit_count(self, example: Example) -> int:
        return int(self.task.length(example)) * len(self.task.settings.names)

    def unpadded(self, logits: Array, examples: Sequence[Example]) -> list[Array]:
        """Return the logits of all windows of each example, special tokens included, one after another."""
        windows, left = iter(logits), self.task.padding.left
        rows = []
        for example in examples:
            sizes = [end - begin + self.task.layout.special for begin, end, _, _ in self.task.windows(example)]
            parts = [next(windows) for _ in sizes]
            rows.append(np.concatenate([p[-n:] if left else p[:n] for p, n in zip(parts, sizes, strict=True)]))
        return rows

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        cuts = [artifact.cut(example["input_ids"])[0] for example in examples]
        logits = iter(artifact.logits([window for cut in cuts for window in cut]))
        return [np.concatenate([next(logits) for _ in cut]) for cut in cuts]

    @torch.no_grad()
    def answers(self, model: nn.Module, examples: Sequence[Example]) -> list[Record]:
        """Return the answers with their `margin`: the smallest gap between the best two tags of a word."""
        batch = self.task.collate(examples)
        logits = self.task.logits(model, batch).float()
        words = batch["places"] >= 0
        best = logits.flatten(0, 1)[batch["places"].clamp(min=0)].double().softmax(-1).topk(2).values
        gaps = torch.where(words, best[..., 0] - best[..., 1], 1.0)
        margins = gaps.amin(1).tolist() if gaps.shape[1] else [1.0] * len(gaps)
        answers = map(self.task.answer, self.task.records(logits, batch))
        return [{**answer, "margin": margin} for answer, margin in zip(answers, margins, strict=True)]

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """An exact artifact may change the entities only of rows with a word whose best two tags are close."""
        c = comparison
        pairs = list(zip(c.rows, c.answers, strict=True))
        certain = np.array([row.answer["margin"] > c.limits.margin for row in c.rows])
        differ = np.array([_found(row.answer) != _found(answer) for row, answer in pairs])
        gaps = [1.0 if d else _score_gap(row.answer, a) for (row, a), d in zip(pairs, differ, strict=True)]
        entities = c.decisions(differ, certain, "rows", largest_score_difference=max(gaps))
        return {"entities": entities, "f1": self._f1(c)}, c.worst_rows(gaps, "entities")

    def _f1(self, c: Comparison) -> Check:
        types = self.task.settings.types
        answers = ([row.answer for row in c.rows], c.answers)
        reference, artifact = (
            counts(
                [{"prediction": a["entities"], "target": row.target} for row, a in zip(c.rows, found, strict=True)],
                types,
            ).sum(1)
            for found in answers
        )
        table = np.concatenate([artifact, reference], 1)

        def f1(sums: Sequence[float], at: int) -> float:
            return summary(np.array(sums[at : at + 3])[None])["f1"]

        totals = table.sum(0).tolist()
        limit = None if c.exact else c.limits.int8_accuracy
        return c.paired([f1(totals, 0), f1(totals, 3)], limit, table, lambda sums: f1(sums, 0) - f1(sums, 3))


def _found(answer: Record) -> list[tuple[int, int, str]]:
    return [key_of(entity) for entity in answer["entities"]]


def _score_gap(ours: Record, theirs: Record) -> float:
    pairs = zip(ours["entities"], theirs["entities"], strict=True)
    return max((largest_gap(a["score"], b["score"]) for a, b in pairs), default=0.0)
