"""Export classifiers with several labels per row: one graph of the logits, and the thresholds in settings.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.export.artifact import Array
from trainer.export.parity_checks import Check, Comparison, largest_gap
from trainer.task.base import Record
from trainer.tasks.classification.export import ClassificationExport
from trainer.tasks.classification.multi_label.metrics import indicators
from trainer.tasks.classification.multi_label.program import MultiLabelClassifier


class MultiLabelExport(ClassificationExport):
    program = MultiLabelClassifier
    program_name = "multi_label"

    def settings(self, model: Any) -> dict[str, Any]:
        return super().settings(model) | {"thresholds": self.task.thresholds}

    def stock_share(self, logits: Array) -> Array:
        return 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """An exact artifact may change only labels whose probability is within the margin of the threshold."""
        c, margin, names = comparison, comparison.limits.margin, self.task.settings.names
        limits = np.array([self.task.thresholds[name] for name in names])
        ours, theirs = (
            np.array([[a["probabilities"][name] for name in names] for a in answers])
            for answers in ([row.answer for row in c.rows], c.answers)
        )
        gaps = [largest_gap(a, b) for a, b in zip(theirs, ours, strict=True)]
        certain, differ = np.abs(ours - limits) > margin, (ours >= limits) != (theirs >= limits)
        labels = c.decisions(differ, certain, "decisions", largest_probability_difference=max(gaps))
        return {"labels": labels, "f1_micro": self._f1(c)}, c.worst_rows(gaps, "labels")

    def _f1(self, c: Comparison) -> Check:
        """Compare micro F1 of both, from hits, predicted and true labels of each row."""
        names = self.task.settings.names
        true = indicators([list(row.target) for row in c.rows], names)
        tables = []
        for answers in (c.answers, [row.answer for row in c.rows]):
            given = indicators([answer["labels"] for answer in answers], names)
            tables.append(np.stack([(given & true).sum(1), given.sum(1) + true.sum(1)], 1).astype(float))

        def f1(sums: Any) -> float:
            return float(2 * sums[0] / sums[1]) if sums[1] else 0.0

        return c.paired(
            [f1(table.sum(0)) for table in tables],
            None if c.exact else c.limits.int8_accuracy,
            np.concatenate(tables, 1),
            lambda sums: f1(sums[:2]) - f1(sums[2:]),
        )
