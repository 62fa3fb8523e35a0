"""Where a classifier is wrong: the most confident errors, errors by length and by class, texts known from training."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.report.inputs import confidence, is_wrong, write_lines
from trainer.rundir import write_json

LENGTH_EDGES = (10, 25, 50, 100, 200, 400)  # words of a text; a bucket ends with its edge
Measure = tuple[str, Callable[[Sequence[Record]], float]]  # name of a score and the score of some records
Z = 1.959963984540054  # 97.5% of a normal distribution lie below


def words(record: Record) -> int:
    """Words of the input, split at white space."""
    return len(record["input"].split())


def wrong_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """All wrong rows, the most confident first (ties in corpus order): id, text, target, prediction, confidence, …"""
    errors = [
        {
            "id": record["id"],
            "text": record["input"],
            "target": record["target"],
            "prediction": record["prediction"],
            "confidence": confidence(record),
            "loss": record["loss"],
            "words": words(record),
        }
        for record in records
        if is_wrong(record)
    ]
    return sorted(errors, key=lambda error: -error["confidence"])


def length_buckets(
    records: Sequence[Record], edges: Sequence[int] = LENGTH_EDGES
) -> list[tuple[int, int | None, list[Record]]]:
    """(fewest words, most words, rows) for each length bucket that has rows; the last has no upper end."""
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(sum(words(record) > edge for edge in edges), []).append(record)
    starts, ends = (0, *(edge + 1 for edge in edges)), (*edges, None)
    return [(starts[i], ends[i], found[i]) for i in sorted(found)]


def errors_by_length(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows, errors, and their share with its interval for each bucket of input length in words."""
    return [{"from": low, "to": high, **_rate(rows)} for low, high, rows in length_buckets(records)]


def errors_by_class(records: Sequence[Record], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The same for each true class that has rows, and `mostly_taken_for`, the most frequent wrong answer."""
    by_class: dict[str, list[Record]] = {label: [] for label in labels}
    for record in records:
        by_class[record["target"]].append(record)
    found = []
    for label, rows in by_class.items():
        if rows:
            wrong = Counter(record["prediction"] for record in rows if is_wrong(record))
            found.append(
                {"label": label, **_rate(rows), "mostly_taken_for": next(iter(wrong.most_common(1)), [None])[0]}
            )
    return found


def _rate(rows: Sequence[Record]) -> dict[str, Any]:
    wrong = sum(map(is_wrong, rows))
    return {
        "rows": len(rows),
        "errors": wrong,
        "error_rate": wrong / len(rows),
        "error_rate_ci95": wilson(wrong, len(rows)),
    }


def wilson(hits: int, trials: int) -> list[float]:
    """95% interval [low, high] of a share (Wilson 1927), honest for few rows and for shares near 0 and 1."""
    share, spread = hits / trials, Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def accuracy(records: Sequence[Record]) -> float:
    return sum(not is_wrong(record) for record in records) / len(records)


def find_shared_texts(
    train_texts: Iterable[str],
    records: Sequence[Record],
    measure: Measure = ("accuracy", accuracy),
) -> dict[str, Any]:
    """Rows of the split whose input stands, letter by letter after cleaning, in the training set too.

    The training texts stream past hashes of the split's: the memory depends on the split alone.

    Args:
        train_texts: cleaned inputs of the training rows, in the form of a record's `input`.
        records: of the evaluated split.
        measure: name of a score and the function from records to it.

    Returns:
        See `shared_summary`.
    """
    rows: dict[bytes, list[str]] = {}
    for record in records:
        rows.setdefault(_digest(record["input"]), []).append(record["id"])
    shared = {digest for text in train_texts if (digest := _digest(text)) in rows}
    return shared_summary({row_id for digest in shared for row_id in rows[digest]}, records, measure)


def shared_summary(
    ids: Iterable[str],
    records: Sequence[Record],
    measure: Measure = ("accuracy", accuracy),
) -> dict[str, Any]:
    """{"count", "rows", "ids"} and, under the measure's name, the score of all rows, of those not in the training
    set (`*_without`) and of the shared ones (`*_shared`); null where there is no such row."""
    known, (name, score) = set(ids), measure
    seen = [record for record in records if record["id"] in known]
    new = [record for record in records if record["id"] not in known]
    return {
        "count": len(seen),
        "rows": len(records),
        name: score(records),
        f"{name}_without": score(new) if new else None,
        f"{name}_shared": score(seen) if seen else None,
        "ids": [record["id"] for record in seen],
    }


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def write_errors(records: Sequence[Record], labels: Sequence[str], folder: Path) -> list[Path]:
    """errors.jsonl (one line per wrong row) and errors.json (rates by length and class) in `folder`."""
    errors = wrong_rows(records)
    summary = {
        "rows": len(records),
        "errors": len(errors),
        "by_length": errors_by_length(records),
        "by_class": errors_by_class(records, labels),
    }
    write_json(folder / "errors.json", summary)
    return [write_lines(folder / "errors.jsonl", errors), folder / "errors.json"]
