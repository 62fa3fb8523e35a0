"""Export regression models: one graph of the outputs. Differences are measured in deviations of the training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from trainer.export.artifact import Array
from trainer.export.parity_checks import Check, Comparison, largest_gap
from trainer.task.base import Example, Record
from trainer.tasks.classification.export import ClassificationExport
from trainer.tasks.classification.regression.metrics import values_of
from trainer.tasks.classification.regression.program import Regressor

LARGEST = 16  # mean of a target, in its deviations, at which bf16 rounds to about 1/16 of one
BROKEN = 10  # times `int8_accuracy`: a mean squared difference that is no rounding


class RegressionExport(ClassificationExport):
    program = Regressor
    program_name = "regression"
    pipeline = ""  # it returns standardized numbers where a scale cannot be a part of the output layer

    def settings(self, model: Any) -> dict[str, Any]:
        names, task = self.task.settings.names, self.task
        scales = [[0.0, 1.0]] * len(names) if task.in_unit else [list(scale) for scale in task.scales]
        return super().settings(model) | {"several": bool(task.settings.targets), "scales": scales}

    @property
    def fits_bf16(self) -> bool:
        return not self.task.in_unit or all(abs(mean) <= LARGEST * deviation for mean, deviation in self.task.scales)

    @property
    def _deviations(self) -> Array:
        """What one deviation of the training rows is in outputs of the model."""
        return np.array([deviation if self.task.in_unit else 1.0 for _, deviation in self.task.scales])

    def torch_logits(self, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
        return [row / self._deviations for row in super().torch_logits(model, examples)]

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        return [row / self._deviations for row in super().artifact_logits(artifact, examples)]

    def stock_outputs(self, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
        return self.torch_logits(model, examples)

    def stock_share(self, logits: Array) -> Array:
        return logits / self._deviations

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """An exact artifact gives the same numbers within the limit of logits; others lose little of the score."""
        c, key = comparison, "values" if self.task.settings.targets else "value"
        by = np.array([deviation for _, deviation in self.task.scales])
        names = self.task.settings.names

        def table(values: Sequence[Any]) -> Array:
            return np.array([values_of(value, names) for value in values], dtype=float) / by

        true = table([row.target for row in c.rows])
        ours, theirs = table([row.answer[key] for row in c.rows]), table([answer[key] for answer in c.answers])
        gaps = [largest_gap(a, b) for a, b in zip(theirs, ours, strict=True)]
        limit = c.limits.logits if c.exact else None
        values: Check = {
            "passed": limit is None or max(gaps) <= limit,
            "largest_difference": max(gaps),
            "mean_difference": float(np.mean(gaps)),
            "limit": limit,
            "unit": "deviations of the training rows",
        }
        return {"values": values, "mse": self._squares(c, theirs - true, ours - true)}, c.worst_rows(gaps, key)

    def _squares(self, c: Comparison, theirs: Array, ours: Array) -> Check:
        """Compare the mean squared errors of both, in units of the variance of the training rows.

        The errors of rounding that may pass, at most `int8_accuracy` in their mean square, change the score of few
        rows by chance: as often for the better as for the worse. So that much is added to the limit. An artifact with
        much larger differences is broken, even if they are for the better.
        """
        pairs = np.stack([(theirs**2).mean(1), (ours**2).mean(1), np.ones(len(ours))], 1)
        artifact, reference, _ = pairs.mean(0).tolist()
        limit, rounding = c.limits.int8_accuracy, float(((theirs - ours) ** 2).mean())
        check = c.paired(
            [artifact, reference],
            None if c.exact else limit + chance(min(limit, rounding), reference, len(ours)),
            pairs,
            lambda sums: (sums[0] - sums[1]) / sums[2],
            loss=artifact - reference,
        )
        if not c.exact and limit and rounding > BROKEN * limit:
            check |= {"passed": False, "note": f"mean squared difference from the weights' values: {rounding:.3g}"}
        return check


def chance(rounding: float, residual: float, rows: int) -> float:
    """Return by how much rounding changes a mean squared error by chance, at most, in 95% of samples.

    The change is the mean of e² + 2 e r over the rows, with the error e of rounding and the residual r. The second
    term has mean 0 and the standard error 2 sqrt(E e² E r² / rows).

    Args:
        rounding: mean square of e.
        residual: mean square of r.
        rows: of the sample.
    """
    return 1.96 * 2 * math.sqrt(rounding * residual / rows)
