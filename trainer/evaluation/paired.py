"""Differences of scores on the same rows, by a paired bootstrap.

In each resample of the bootstrap the same rows are drawn for both models (Koehn 2004). The draws are those of
sacreBLEU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.resampling import RESAMPLES, SEED, Resampled, percentiles

Array = np.ndarray[Any, Any]


def drawn(rows: int, resamples: int, seed: int = SEED) -> Iterator[Array]:
    """Yield how often each row is drawn in each resample, (rows,)."""
    draw = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(draw.integers(0, rows, rows), minlength=rows).astype(np.float64)


def paired_bootstrap(
    scores: Sequence[Resampled], rows: int, *, resamples: int = RESAMPLES, alive: Callable[[], None] = lambda: None
) -> list[dict[str, dict[str, Any]]]:
    """Return for each model after the first its differences from the first: {key: {"difference", …}}.

    "difference_ci95" is the 95% percentile interval, and "p" the two-sided p-value: the share of resamples whose
    difference is as far from the mean of all as the difference is from 0. Both are None where a score of fewer than
    half of the resamples is a number.

    Args:
        scores: of the same rows in the same order.
        alive: called for each resample.
    """
    once = np.ones(rows)
    first, *others = (score(once) for score in scores)
    made: list[dict[str, list[float]]] = [{key: [] for key in other if key in first} for other in others]
    for weights in drawn(rows, resamples):
        alive()
        base, *found = (score(weights) for score in scores)
        for differences, other in zip(made, found, strict=True):
            for key, values in differences.items():
                value = other[key] - base[key]
                values += [value] if math.isfinite(value) else []
    return [
        {key: _difference(other[key] - first[key], values, resamples) for key, values in differences.items()}
        for differences, other in zip(made, others, strict=True)
    ]


def _difference(found: float, values: Sequence[float], resamples: int) -> dict[str, Any]:
    enough = resamples and 2 * len(values) >= resamples
    interval = percentiles(values) if enough else None
    return {"difference": found, "difference_ci95": interval, "p": p_value(found, values) if enough else None}


def p_value(found: float, values: Sequence[float]) -> float:
    """Return the two-sided p-value of a difference from those of resamples; never 0, as in sacreBLEU."""
    table = np.asarray(values)
    far = np.abs(table - table.mean()) >= abs(found) - 1e-12
    return float((far.sum() + 1) / (len(table) + 1))
