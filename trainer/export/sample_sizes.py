"""How much a benchmark must have measured before it states a percentile or recommends an artifact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_ROUNDS = 5  # measured rounds below which nothing is recommended: by luck the slower of two wins all five in 3%
PERCENTILES = (50, 95, 99)


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50_ms, p95_ms and p99_ms of requests; None where there are fewer than `fewest_requests`."""
    return {
        f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if len(seconds) >= fewest_requests(p) else None
        for p in PERCENTILES
    }


def fewest_requests(percentile: int) -> int:
    """Requests of which one may be slower than the percentile: 2 for p50, 20 for p95, 100 for p99."""
    return math.ceil(100 / (100 - percentile))


def too_few_rounds(course: dict[str, Any], seconds: float) -> str | None:
    """Why nothing is recommended for a batch size. None if it was measured in enough rounds.

    Args:
        course: with the number of its measured "rounds".
        seconds: the budget of the benchmark.
    """
    rounds = course["rounds"]
    if rounds >= LEAST_ROUNDS:
        return None
    need = math.ceil(seconds * (LEAST_ROUNDS + 1) / rounds)
    what = "1 round was" if rounds == 1 else f"{rounds} rounds were"
    return f"{what} measured, {LEAST_ROUNDS} are needed: give it more time (about --seconds {need})"


def missing_percentiles(courses: Sequence[dict[str, Any]]) -> list[str]:
    """A note on percentiles that are null, if there are any."""
    cells = [cell for course in courses for cell in course["contestants"].values()]
    missing = [p for p in PERCENTILES if any(cell[f"p{p}_ms"] is None for cell in cells)]
    needed = ", ".join(f"p{p} needs {fewest_requests(p)}" for p in missing)
    return [f"A percentile is left out where there were too few requests: {needed}"] if missing else []
