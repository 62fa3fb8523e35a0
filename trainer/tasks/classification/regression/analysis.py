"""Residuals from the records of a regression model, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluation.predictions import Record
from trainer.report.rows import length_buckets, words

BINS = 8  # of the true value, of equal width


def columns(records: Sequence[Record], target: int) -> Any:
    """Return true and predicted values (2, rows) of one target."""
    return np.array([[record[key][target] for record in records] for key in ("true", "given")], dtype=np.float64)


def mean_absolute_error(records: Sequence[Record]) -> float:
    """Mean over rows and targets."""
    gaps = [abs(a - b) for record in records for a, b in zip(record["true"], record["given"], strict=True)]
    return float(np.mean(gaps))


def residuals(records: Sequence[Record], target: int) -> dict[str, Any]:
    """{"mean", "deviation", "mae", "by_value": [{"from", "to", "rows", "mean", "mae"}]} of prediction - truth.

    Bins have equal width between the lowest and the highest true value; those without rows are left out.
    """
    true, given = columns(records, target)
    errors, (low, high) = given - true, (float(true.min()), float(true.max()))
    width = (high - low) / BINS or 1.0
    bins = np.minimum(((true - low) / width).astype(np.int64), BINS - 1)
    table = [
        {
            "from": low + number * width,
            "to": low + (number + 1) * width,
            "rows": int(inside.sum()),
            "mean": float(errors[inside].mean()),
            "mae": float(np.abs(errors[inside]).mean()),
        }
        for number in range(BINS)
        if (inside := bins == number).any()
    ]
    return {
        "mean": float(errors.mean()),
        "deviation": float(errors.std()),
        "mae": float(np.abs(errors).mean()),
        "by_value": table,
    }


def worst_rows(records: Sequence[Record], deviations: Sequence[float]) -> list[dict[str, Any]]:
    """All rows, the largest residual first, in deviations of the training rows (ties in corpus order)."""
    rows = []
    for record in records:
        gaps = [
            abs(given - true) / by for given, true, by in zip(record["given"], record["true"], deviations, strict=True)
        ]
        keys = ("id", "target", "prediction", "loss")
        rows.append({**{key: record[key] for key in keys}, "text": record["input"], "words": words(record)})
        rows[-1]["residual"] = max(gaps)
    return sorted(rows, key=lambda row: -row["residual"])


def by_length(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean absolute error by length in words."""
    return [{**bucket, "rows": len(rows), "mae": mean_absolute_error(rows)} for bucket, rows in length_buckets(records)]
