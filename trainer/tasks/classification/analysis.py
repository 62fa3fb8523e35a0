"""Confusion matrix, scores by class, calibration and errors from the records of a classifier, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import wilson
from trainer.report.confusion_matrix import matrix_values
from trainer.report.formats import label as shortened
from trainer.report.rows import length_buckets, words

BINS = 15  # of confidence, as for the `ece` of metrics.json
COLUMNS = ("precision", "recall", "f1-score", "support")
LONGEST_LABEL = 44  # characters of a class name in the table of scores by class


def is_wrong(record: Record) -> bool:
    return bool(record["prediction"] != record["target"])


def accuracy(records: Sequence[Record]) -> float:
    """Share of right rows."""
    return sum(not is_wrong(record) for record in records) / len(records)


def confusion(records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """{"labels", "counts", "row_shares"}: row = true class, column = predicted class, in the order of `labels`.

    A class without rows has null shares.
    """
    truth, predicted = _ids(records, labels)
    counts = np.bincount(truth * len(labels) + predicted, minlength=len(labels) ** 2).reshape(len(labels), -1)
    return {"labels": list(labels), **matrix_values(counts, counts.sum(1))}


def _ids(records: Sequence[Record], labels: Sequence[str]) -> Any:
    """Class ids of truth and prediction (2, rows): a name may be any text, such as that of an average of a report."""
    ids = {label: number for number, label in enumerate(labels)}
    return np.array([[ids[record[key]] for record in records] for key in ("target", "prediction")], dtype=np.int64)


def worst_confusion(matrix: dict[str, Any]) -> tuple[int, float, str, str] | None:
    """The most frequent confusion: rows, share of the true class, true class, predicted class. None without one."""
    wrong = np.array(matrix["counts"], dtype=np.int64)
    np.fill_diagonal(wrong, 0)
    true, predicted = divmod(int(wrong.argmax()), len(wrong))
    names = matrix["labels"][true], matrix["labels"][predicted]
    return (int(wrong.max()), matrix["row_shares"][true][predicted], *names) if wrong.any() else None


def classification_report(records: Sequence[Record], labels: Sequence[str]) -> tuple[dict[str, Any], str]:
    """scikit-learn's report as numbers and as text: precision, recall, F1 and support per class and averaged.

    As in scikit-learn the averages are over the classes that occur, as truth or as prediction.

    Returns:
        numbers: {"classes": [{"label", "precision", "recall", "f1-score", "support"}], "accuracy", "macro avg": {…},
            "weighted avg": {…}}. "classes" has the order of `labels`, with null scores for a class that does not occur.
            Each class is also a key, as in scikit-learn's dictionary, unless its name is another key's.
        text: the table with one line for each class that occurs, and the names of the others.
    """
    from sklearn.metrics import classification_report as report

    truth, predicted = _ids(records, labels)
    occurring = sorted({*truth.tolist(), *predicted.tolist()})
    common: dict[str, Any] = {"labels": occurring, "zero_division": 0}
    found = report(truth, predicted, target_names=list(map(str, occurring)), output_dict=True, **common)
    nothing = {**dict.fromkeys(COLUMNS), "support": 0}
    classes = [{"label": label, **found.get(str(number), nothing)} for number, label in enumerate(labels)]
    for line in classes:
        line["support"] = int(line["support"])
    numbers = {line["label"]: {key: line[key] for key in COLUMNS} for line in classes} | {"classes": classes}
    numbers |= {key: found[key] for key in ("accuracy", "macro avg", "weighted avg")}
    names = [shortened(label, LONGEST_LABEL) for label in labels]
    text = str(report(truth, predicted, digits=4, target_names=[names[number] for number in occurring], **common))
    absent = ", ".join(name for number, name in enumerate(names) if number not in occurring)
    return numbers, text + (f"\nNeither a true nor a predicted class: {absent}\n" if absent else "")


def calibration(records: Sequence[Record], bins: int = BINS) -> dict[str, Any]:
    """Rows in equal-width bins of the probability of the predicted label (Guo et al. 2017).

    Returns:
        {"ece", "mean_confidence", "accuracy", "rows", "bins": [{"from", "to", "rows", "confidence", "accuracy"}]};
        ece is the sum over bins of the share of rows times |accuracy - confidence|; in an empty bin both are null.
    """
    confidence = np.array([record["confidence"] for record in records], dtype=np.float64)
    right = np.array([not is_wrong(record) for record in records], dtype=np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows, sums, hits = (np.bincount(place, weights, bins) for weights in (None, confidence, right))
    means = ((c / n, r / n) if n else (None, None) for n, c, r in zip(rows, sums.tolist(), hits.tolist(), strict=True))
    table = [
        {"from": k / bins, "to": (k + 1) / bins, "rows": n, "confidence": mean, "accuracy": share}
        for k, (n, (mean, share)) in enumerate(zip(rows.tolist(), means, strict=True))
    ]
    total = len(records)
    ece, mean = float(np.abs(sums - hits).sum() / total), float(confidence.mean())
    return {"ece": ece, "mean_confidence": mean, "accuracy": accuracy(records), "rows": total, "bins": table}


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
