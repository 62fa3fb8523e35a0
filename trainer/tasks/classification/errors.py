"""Errors of a classifier: the wrong rows with the highest confidence, and error rates by length and by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.report.rows import length_buckets, words
from trainer.report.task_report import write_lines
from trainer.rundir import write_json

Z = 1.959963984540054  # the 97.5th percentile of a normal distribution


def is_wrong(record: Record) -> bool:
    return bool(record["prediction"] != record["target"])


def accuracy(records: Sequence[Record]) -> float:
    """Share of right rows."""
    return sum(not is_wrong(record) for record in records) / len(records)


def wrong_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """All wrong rows, the highest confidence first (ties in corpus order)."""
    keys = ("id", "text", "target", "prediction", "confidence", "loss", "words")
    errors = [{**record, "text": record["input"], "words": words(record)} for record in records if is_wrong(record)]
    return sorted(({key: error[key] for key in keys} for error in errors), key=lambda error: -error["confidence"])


def error_rates(records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """Rows and errors, and the error rate with its interval by length in words and by true class.

    A class without rows is left out. `mostly_taken_for` is its most frequent wrong prediction.
    """
    by_class: dict[str, list[Record]] = {label: [] for label in labels}
    for record in records:
        by_class[record["target"]].append(record)
    classes = []
    for label, rows in by_class.items():
        if rows:
            wrong = Counter(record["prediction"] for record in rows if is_wrong(record)).most_common(1)
            classes.append({"label": label, **_rate(rows), "mostly_taken_for": wrong[0][0] if wrong else None})
    return {
        "rows": len(records),
        "errors": sum(map(is_wrong, records)),
        "by_length": [{**bucket, **_rate(rows)} for bucket, rows in length_buckets(records)],
        "by_class": classes,
    }


def _rate(rows: Sequence[Record]) -> dict[str, Any]:
    wrong, total = sum(map(is_wrong, rows)), len(rows)
    return {"rows": total, "errors": wrong, "error_rate": wrong / total, "error_rate_ci95": wilson(wrong, total)}


def wilson(hits: int, trials: int) -> list[float]:
    """95% interval [low, high] of a share (Wilson 1927), valid for few rows and for shares near 0 and 1."""
    share, spread = hits / trials, Z * Z / trials
    center = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return [max(0.0, center - half), min(1.0, center + half)]


def write_errors(wrong: Sequence[dict[str, Any]], rates: dict[str, Any], folder: Path) -> list[Path]:
    """Write errors.jsonl (one line per wrong row) and errors.json (rates by length and class)."""
    write_json(folder / "errors.json", rates)
    return [write_lines(folder / "errors.jsonl", wrong), folder / "errors.json"]
