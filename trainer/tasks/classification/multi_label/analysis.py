"""Scores and errors by label from the records of a multi-label classifier, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import wilson
from trainer.report.rows import length_buckets, words
from trainer.tasks.classification.multi_label.metrics import by_label, indicators


def is_wrong(record: Record) -> bool:
    return bool(record["given"] != record["true"])


def subset_accuracy(records: Sequence[Record]) -> float:
    """Share of rows whose labels are all right."""
    return sum(not is_wrong(record) for record in records) / len(records)


def label_report(
    records: Sequence[Record], labels: Sequence[str], thresholds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """[{"label", "threshold", "support", "predicted", "precision", "recall", "f1-score", "missed", "spurious",
    "missed_with", "spurious_with"}], in the order of `labels`.

    missed: rows that have the label, and it was not predicted; spurious: the reverse. `missed_with` is the label that
    was most often predicted wrongly in rows that missed this one, `spurious_with` the one most often missed in rows
    where this one is wrong; null if there is none.
    """
    true, given = (indicators([record[key] for record in records], labels) for key in ("true", "given"))
    hits = (true & given).sum(0)
    precision, recall = by_label(hits, given.sum(0)), by_label(hits, true.sum(0))
    f1 = by_label(2 * hits, given.sum(0) + true.sum(0))
    missed, spurious = true & ~given, given & ~true
    together = missed.astype(np.int64).T @ spurious.astype(np.int64)  # [missed, spurious]: rows
    return [
        {
            "label": name,
            "threshold": thresholds[name],
            "support": int(true[:, n].sum()),
            "predicted": int(given[:, n].sum()),
            "precision": float(precision[n]),
            "recall": float(recall[n]),
            "f1-score": float(f1[n]),
            "missed": int(missed[:, n].sum()),
            "spurious": int(spurious[:, n].sum()),
            "missed_with": _most(together[n], labels),
            "spurious_with": _most(together[:, n], labels),
        }
        for n, name in enumerate(labels)
    ]


def _most(counts: Any, labels: Sequence[str]) -> str | None:
    return labels[int(counts.argmax())] if counts.any() else None


def wrong_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """All rows with a wrong label, the largest loss first (ties in corpus order)."""
    errors = [
        {
            "id": record["id"],
            "text": record["input"],
            "target": record["true"],
            "prediction": record["given"],
            "missed": [name for name in record["true"] if name not in record["given"]],
            "spurious": [name for name in record["given"] if name not in record["true"]],
            "loss": record["loss"],
            "words": words(record),
        }
        for record in records
        if is_wrong(record)
    ]
    return sorted(errors, key=lambda error: -error["loss"])


def error_rates(records: Sequence[Record]) -> dict[str, Any]:
    """Rows and errors, and the error rate with its interval by length in words and by the number of true labels."""
    counts: dict[int, list[Record]] = {}
    for record in records:
        counts.setdefault(len(record["true"]), []).append(record)
    return {
        "rows": len(records),
        "errors": sum(map(is_wrong, records)),
        "by_length": [{**bucket, **_rate(rows)} for bucket, rows in length_buckets(records)],
        "by_labels": [{"labels": number, **_rate(counts[number])} for number in sorted(counts)],
    }


def _rate(rows: Sequence[Record]) -> dict[str, Any]:
    wrong, total = sum(map(is_wrong, rows)), len(rows)
    return {"rows": total, "errors": wrong, "error_rate": wrong / total, "error_rate_ci95": wilson(wrong, total)}


def most_frequent(records: Sequence[Record]) -> tuple[list[str], float]:
    """The most frequent set of true labels, and its share of the rows."""
    found, count = Counter(tuple(record["true"]) for record in records).most_common(1)[0]
    return list(found), count / len(records)
