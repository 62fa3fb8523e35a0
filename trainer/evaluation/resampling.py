"""Bootstrap intervals of scores that are functions of sums over rows, and the perplexity.

Intervals are percentiles of Koehn's (2004) bootstrap: rows are drawn with replacement from a fixed seed, as sacreBLEU
draws them, the same rows for every metric. This module loads numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
WINDOW = 10_000  # records whose texts are in memory
SEED = 12345  # sacreBLEU's own default
Z = 1.959963984540054  # the 97.5th percentile of a normal distribution
LARGEST_EXPONENT = 709.0  # exp of more is no float64

Table = np.ndarray[Any, Any]
Score = float | int | str | list[float] | list[str]
Resampled = Callable[[Table], dict[str, float]]  # from how often each row is drawn, (rows,), to the scores


def wilson(hits: int, trials: int) -> list[float]:
    """95% interval [low, high] of a share (Wilson 1927), valid for few rows and for shares near 0 and 1."""
    share, spread = hits / trials, Z * Z / trials
    center = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return [max(0.0, center - half), min(1.0, center + half)]


def bootstrap_interval(
    statistics: npt.ArrayLike,
    score: Callable[[Sequence[float]], float],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[float]:
    """95% percentile interval of a score that is a function of summed row statistics.

    Args:
        statistics: [rows, k] numbers whose sums over rows decide the score.
        score: from k sums to the score.

    Returns:
        [low, high]
    """
    table = np.asarray(statistics, dtype=np.float64)  # [rows, k]
    rows = len(table)
    draw = np.random.default_rng(seed)
    return percentiles(score(table[draw.integers(0, rows, rows)].sum(axis=0).tolist()) for _ in range(resamples))


def percentiles(scores: Iterable[float]) -> list[float]:
    """[low, high] of the scores of resamples, all finite: those with a 40th of all below and above."""
    found = sorted(scores)
    cut = len(found) // 40
    return [found[cut], found[-1 - cut]]


def perplexity(
    losses: Sequence[float], tokens: Sequence[int], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Score]:
    """Token cross-entropy (nats) and its exponential, from the summed loss and the tokens of each row."""
    loss = math.fsum(losses) / sum(tokens)
    scores: dict[str, Score] = {"loss": loss, "perplexity": _perplexity(loss)}
    if resamples:
        table = np.array([losses, tokens], dtype=np.float64).T  # [rows, 2]
        scores["perplexity_ci95"] = bootstrap_interval(
            table, lambda sums: _perplexity(sums[0] / sums[1]), resamples, seed
        )
    return scores


def _perplexity(loss: float) -> float:
    """Return exp(loss), at most 8e307, so that it is a number in JSON for a diverged model."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def resampled_losses(losses: Sequence[float], tokens: Sequence[int]) -> Resampled:
    """Return the loss per token and the perplexity, from the summed loss and the tokens of each row."""
    loss, count = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)

    def scores(weights: Table) -> dict[str, float]:
        mean = float(weights @ loss) / max(1.0, float(weights @ count))
        return {"loss": mean, "perplexity": _perplexity(mean)}

    return scores
