"""The trend of a measure over the steps of a run: a regression slope whose interval allows for autocorrelation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.96
LARGEST_LAG = 0.25  # share of the samples


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

    The standard error has Bartlett weights. Their number of lags follows from the autocorrelation of the residuals
    (Andrews, 1991, with an AR(1) process).

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
    residuals = dy - slope * dx
    scores = dx * residuals
    lag = _lag(residuals)
    variance = float(scores @ scores)
    for distance in range(1, lag + 1):
        weight = 1 - distance / (lag + 1)
        variance += 2 * weight * float(scores[distance:] @ scores[:-distance])
    error = np.sqrt(max(variance, 0.0) * len(x) / degrees) / spread
    half = NORMAL_95 * float(error)
    return Trend(slope, slope - half, slope + half, float(y.mean()), lag)


def _lag(residuals: np.ndarray) -> int:
    """Return the number of lags for Bartlett weights."""
    count, square = len(residuals), float(residuals[:-1] @ residuals[:-1])
    if square == 0:
        return 0
    rho = float(np.clip(residuals[1:] @ residuals[:-1] / square, 0.0, 0.97))
    alpha = 4 * rho**2 / ((1 - rho) ** 2 * (1 + rho) ** 2)
    return int(min(1.1447 * (alpha * count) ** (1 / 3), LARGEST_LAG * count))
