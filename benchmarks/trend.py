"""The trend of a measure over the steps of a run: a regression slope whose interval allows for autocorrelation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.96
LARGEST_LAG = 0.25  # share of the samples
LARGEST_RHO = 0.97


@dataclass(frozen=True)
class Trend:
    """A slope per step with its 95% interval, and the mean of the measure."""

    slope: float
    low: float
    high: float
    mean: float
    lag: int


def trend(steps: Sequence[float], values: Sequence[float], groups: Sequence[int]) -> Trend:
    """Return the slope of `values` over `steps` with a 95% interval (Newey and West, 1987).

    The standard error is prewhitened by an AR(1) process (Andrews and Monahan, 1992), with Bartlett weights, whose
    number of lags follows from the autocorrelation that is left (Andrews, 1991).

    Args:
        steps: ascending.
        groups: of each sample, such as its start of a run. Each group has a level of its own, and all have one slope.

    Raises:
        ValueError: fewer than three samples besides one for each group, or no two different steps in a group.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    of = np.asarray(groups)
    kinds = np.unique(of)
    degrees = len(x) - len(kinds) - 1
    x_level, y_level = np.empty_like(x), np.empty_like(y)
    for kind in kinds:
        x_level[of == kind], y_level[of == kind] = x[of == kind].mean(), y[of == kind].mean()
    dx, dy = x - x_level, y - y_level
    spread = float(dx @ dx)
    if degrees < 2 or spread == 0:
        raise ValueError(f"{len(x)} samples in {len(kinds)} groups are too few for a slope")
    slope = float(dx @ dy) / spread
    scores = dx * (dy - slope * dx)
    rho = _autocorrelation(scores)
    white = scores[1:] - rho * scores[:-1]  # an AR(1) process has no more autocorrelation then
    lag = _lag(white)
    variance = float(white @ white)
    for distance in range(1, lag + 1):
        weight = 1 - distance / (lag + 1)
        variance += 2 * weight * float(white[distance:] @ white[:-distance])
    variance = max(variance, 0.0) / (1 - rho) ** 2
    error = np.sqrt(variance * len(x) / degrees) / spread
    half = NORMAL_95 * float(error)
    return Trend(slope, slope - half, slope + half, float(y.mean()), lag)


def _autocorrelation(values: np.ndarray) -> float:
    """Return the autocorrelation of neighbors, 0 if it is negative."""
    square = float(values[:-1] @ values[:-1])
    return float(np.clip(values[1:] @ values[:-1] / square, 0.0, LARGEST_RHO)) if square else 0.0


def _lag(values: np.ndarray) -> int:
    """Return the number of lags for Bartlett weights."""
    rho, count = _autocorrelation(values), len(values)
    alpha = 4 * rho**2 / ((1 - rho) ** 2 * (1 + rho) ** 2)
    return int(min(1.1447 * (alpha * count) ** (1 / 3), LARGEST_LAG * count))
