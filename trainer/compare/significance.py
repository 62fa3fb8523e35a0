"""McNemar's test, and Holm's correction of p-values."""

from __future__ import annotations

from collections.abc import Mapping

from scipy.stats import binomtest


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's (1947) test.

    Args:
        only_first, only_second: rows that only one of two models has right.
    """
    rows = only_first + only_second
    return float(binomtest(only_first, rows).pvalue) if rows else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values that are corrected for their number (Holm 1979)."""
    corrected, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - place)))
        corrected[name] = largest
    return corrected
