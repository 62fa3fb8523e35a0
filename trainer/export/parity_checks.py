"""Compare the answers of an artifact with those of the trained weights on the whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.resampling import bootstrap_interval
from trainer.export.rows import FEW, Row
from trainer.recipe.output_sections import GatesConfig
from trainer.task.base import Record

Check = dict[str, Any]  # an entry of "checks" in gate.json
HUGE = 1e30  # replaces NaN and Inf, which JSON cannot hold
SHOWN = 10  # rows in worst_rows
CUT = 100  # characters of a row's text in worst_rows
TOLERANCE = 1e-3  # of probabilities that another process computes, or another graph output


def shown(row: Row, **more: Any) -> Record:
    """Return a row for worst_rows."""
    return {"id": row.id, "input": row.input[:CUT], **more}


@dataclass
class Comparison:
    """Answers of artifact and weights to the same rows.

    Attributes:
        rows: every row of the split, with the answer of the weights.
        answers: the artifact's, in the same order.
        exact: whether they have to be equal (fp32), or may lose a little quality.
        resamples: for the confidence intervals.
    """

    rows: Sequence[Row]
    answers: Sequence[Record]
    exact: bool
    limits: GatesConfig
    resamples: int

    def worst_rows(self, gaps: Sequence[float], key: str | None = None) -> list[Record]:
        """Return the rows with the largest gaps, with the values of `key` in both answers."""
        order = [i for i in np.argsort([-gap for gap in gaps], kind="stable")[:SHOWN].tolist() if gaps[i] > 0]
        found = {i: shown(self.rows[i], difference=gaps[i]) for i in order}
        for i in order if key is not None else ():
            found[i] |= {"reference": self.rows[i].answer[key], "artifact": self.answers[i][key]}
        return list(found.values())

    def paired(
        self,
        scores: Sequence[float],
        limit: float | None,
        table: Any,
        difference: Callable[[Sequence[float]], float],
        loss: float | None = None,
    ) -> Check:
        """Check a score of the artifact against the weights' score on the same rows.

        Args:
            scores: of the artifact, and of the weights.
            limit: the largest `loss` that passes; None always passes.
            table: (rows, statistics), resampled for the confidence interval.
            difference: of the two scores, from summed statistics.
            loss: by default, by how much the score has dropped; for an exact artifact, by how much it differs.
        """
        artifact, reference = scores
        if loss is None:
            loss = abs(artifact - reference) if self.exact else reference - artifact
        check: Check = {
            "passed": limit is None or bool(loss <= limit + 1e-9),  # 0.905 - 0.9 is a little more than 0.005
            "artifact": artifact,
            "reference": reference,
            "difference": artifact - reference,
            "loss": loss,
            "difference_ci95": bootstrap_interval(table, difference, self.resamples),
            "limit": limit,
        }
        if len(self.rows) < FEW:
            check["note"] = f"only {len(self.rows):,} rows (under {FEW:,}): the interval is wide"
        return check

    def decisions(self, differ: Any, certain: Any, what: str, **largest: float) -> Check:
        """Check that an exact artifact changes only decisions that are within the margin of another one.

        Args:
            differ: whether the artifact decides otherwise.
            certain: whether the weights' decision is beyond the margin.
            what: is decided: rows, or decisions.
            largest: the largest difference, by its name.
        """
        beyond = int(np.sum(differ & certain))
        limits = {"margin": self.limits.margin, "limit": 0 if self.exact else None}
        counts = {"differ": int(np.sum(differ)), "differ_beyond_margin": beyond}
        counts[f"{what}_beyond_margin"] = int(np.sum(certain))
        return {"passed": not (self.exact and beyond), **counts, **limits, **largest}

    def accuracy(self, key: str, limit: float | None) -> Check:
        """Check the share of rows whose answer has the target under this key."""
        pairs = zip(self.rows, self.answers, strict=True)
        hits = np.array([[a[key] == row.target, row.answer[key] == row.target, 1.0] for row, a in pairs])
        difference = lambda sums: (sums[0] - sums[1]) / sums[2]  # noqa: E731
        return self.paired(hits.mean(0).tolist()[:2], limit, hits, difference)


def largest_gap(a: Any, b: Any) -> float:
    """Return the largest absolute difference, `HUGE` if there is NaN or Inf."""
    return float(np.nan_to_num(np.abs(np.asarray(a) - b), nan=HUGE, posinf=HUGE).max())
