"""Scores of several labels per row, each with a bootstrap interval. They equal scikit-learn's with zero_division=0.

All sums are in corpus order, in float64: a score does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from trainer.errors import DataError, NumericsError
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import SEED, WINDOW, Resampled, Score
from trainer.tasks.classification.metrics import MOST_CELLS, Array, interval_of


def score_labels(records: Iterable[Mapping[str, Any]], names: Sequence[str], *, resamples: int = 0) -> dict[str, Score]:
    """Return all scores of a split from its prediction records, in any order. 0 `resamples`: no intervals.

    Returns:
        f1_micro, f1_macro, precision_micro, recall_micro, subset_accuracy, hamming_loss, lrap (label-ranking average
        precision), loss (mean binary cross-entropy of a label, nats), an interval [low, high] of each as `*_ci95`,
        rows. Where no row has a label, absent_classes holds its name.

    Raises:
        DataError: no records, or a label that is not among `names`; names id and key.
        NumericsError: a loss or probability is NaN or Inf; names the id.
    """
    table = _numbers(records, names)
    scores: dict[str, Score] = dict(_scores(table.sum(0), len(names), len(table)))
    if resamples and table.size * resamples <= MOST_CELLS:
        for key in list(scores):
            interval = interval_of(_of(key, table, len(names)), len(table), resamples, SEED)
            scores |= {f"{key}_ci95": interval} if interval else {}
    absent = [name for number, name in enumerate(names) if not table[:, 2 * len(names) + number].any()]
    return scores | {"rows": len(table)} | ({"absent_classes": absent} if absent else {})


def _numbers(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Array:
    """Return the table of all rows, in corpus order."""
    found, parts = checked_records(records, lambda record: _check(record, names)), []
    while window := list(islice(found, WINDOW)):
        parts.append(_table(window, names))
    return np.concatenate(parts)


def resampled_labels(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Resampled:
    """Return the scores of `score_labels` as functions of how often each row is drawn."""
    table = _numbers(records, names)
    return lambda weights: _scores(weights @ table, len(names), float(weights.sum()))


def _table(records: Sequence[Record], names: Sequence[str]) -> Array:
    """Return the numbers of each row of which `_scores` needs the sums."""
    true, predicted = (indicators([record[key] for record in records], names) for key in ("target", "prediction"))
    shares = np.array([[record["probabilities"][name] for name in names] for record in records], dtype=np.float64)
    return np.hstack(
        [
            true & predicted,
            predicted,
            true,
            (true == predicted).all(1)[:, None],
            (true != predicted).mean(1)[:, None],
            ranking_precision(true, shares)[:, None],
            np.array([[record["loss"], record["tokens"]] for record in records], dtype=np.float64),
        ]
    ).astype(np.float64)


def _of(key: str, table: Array, labels: int) -> Callable[[Array], float]:
    """Return a function of how often each row is drawn."""
    return lambda weights: _scores(weights @ table, labels, float(weights.sum()))[key]


def _scores(sums: Array, labels: int, rows: float) -> dict[str, float]:
    """Return the scores from the sums of a table of rows: by label hits, predicted and true; then five numbers."""
    hits, predicted, true = sums[:labels], sums[labels : 2 * labels], sums[2 * labels : 3 * labels]
    exact, wrong, ranking, loss, counted = sums[3 * labels :]
    return {
        "f1_micro": _share(2 * hits.sum(), predicted.sum() + true.sum()),
        "f1_macro": float(np.mean(by_label(2 * hits, predicted + true))),
        "precision_micro": _share(hits.sum(), predicted.sum()),
        "recall_micro": _share(hits.sum(), true.sum()),
        "subset_accuracy": float(exact / rows),
        "hamming_loss": float(wrong / rows),
        "lrap": float(ranking / rows),
        "loss": _share(loss, counted),
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def by_label(part: Array, whole: Array) -> Array:
    """Return part / whole, 0 where the whole is 0."""
    result: Array = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return result


def indicators(rows: Sequence[Sequence[str]], names: Sequence[str]) -> Array:
    """Return a table [row, label] of truth values."""
    ids, table = {name: number for number, name in enumerate(names)}, np.zeros((len(rows), len(names)), dtype=bool)
    for number, labels in enumerate(rows):
        table[number, [ids[label] for label in labels]] = True
    return table


def ranking_precision(true: Array, shares: Array) -> Array:
    """Return the label-ranking average precision of each row, as scikit-learn computes it.

    For each true label: of the labels with a probability at least as high, the share of true ones. A row with no label
    or with all of them has 1.
    """
    result = np.ones(len(true))
    for number in np.flatnonzero(true.any(1) & ~true.all(1)):
        own = shares[number]
        above = own[None, :] >= own[true[number]][:, None]
        result[number] = (above[:, true[number]].sum(1) / above.sum(1)).mean()
    return result


def _check(record: Record, names: Sequence[str]) -> None:
    for key in ("target", "prediction"):
        found = record.get(key)
        if not isinstance(found, list) or not set(found) <= set(names):
            raise DataError(
                f"prediction {record['id']!r}: {key} is {found!r}; a list of {', '.join(names)} is expected"
            )
    probabilities = record.get("probabilities")
    if not isinstance(probabilities, dict) or probabilities.keys() != set(names):
        raise DataError(f"prediction {record['id']!r}: probabilities need exactly the labels {', '.join(names)}")
    if not all(map(math.isfinite, [record.get("loss", math.nan), *probabilities.values()])):
        raise NumericsError(f"prediction {record['id']!r}: loss or probabilities are not finite; the weights diverged")
