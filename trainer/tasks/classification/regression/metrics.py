"""Scores of regression, each with a bootstrap interval. They equal those of scikit-learn and scipy.

All sums are in corpus order, in float64: a score does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.errors import DataError, NumericsError
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import SEED, Resampled, Score
from trainer.tasks.classification.metrics import Array, interval_of

Measure = Callable[[Array], float]  # of how often each row counts, (rows,)


def score_regression(
    records: Iterable[Mapping[str, Any]], names: Sequence[str], *, resamples: int = 0
) -> dict[str, Score | dict[str, Any]]:
    """Return all scores of a split from its prediction records, in any order. 0 `resamples`: no intervals.

    Returns:
        mse, mae, r2, pearson, spearman (means over the targets), loss (mean of a standardized target), an interval
        [low, high] of each as `*_ci95`, rows; with several targets "targets": {name: the five scores}. If a target has
        the same value in all rows, r2 and the correlations are left out. They are 0 if only the predictions are equal.

    Raises:
        DataError: no records, or a target or prediction that is not a number; names id and key.
        NumericsError: a loss or prediction is NaN or Inf; names the id.
    """
    of_all, losses, measures = _measures(records, names)
    once, rows = np.ones(len(losses)), len(losses)
    scores: dict[str, Score | dict[str, Any]] = {key: measure(once) for key, measure in of_all.items()}
    for key, measure in of_all.items() if resamples else ():
        if interval := interval_of(measure, rows, resamples, SEED):
            scores[f"{key}_ci95"] = interval
    if len(names) > 1:
        pairs = zip(names, measures, strict=True)
        scores["targets"] = {name: {key: measure(once) for key, measure in m.items()} for name, m in pairs}
    return scores | {"rows": rows}


def _measures(
    records: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, Measure], Array, list[dict[str, Measure]]]:
    """Return the scores as functions of the weights of the rows, the losses (rows, 2), and the scores by target."""
    numbers = {"target": array("d"), "prediction": array("d"), "loss": array("d")}
    for record in checked_records(records, lambda record: _check(record, names)):
        for key in ("target", "prediction"):
            numbers[key].extend(values_of(record[key], names))
        numbers["loss"].extend((record["loss"], record["tokens"]))
    true, predicted = (np.frombuffer(numbers[key]).reshape(-1, len(names)).T for key in ("target", "prediction"))
    measures = [measures_of(*pair) for pair in zip(true, predicted, strict=True)]
    losses = np.frombuffer(numbers["loss"]).reshape(-1, 2)
    of_all: dict[str, Measure] = {
        key: _mean([by_key[key] for by_key in measures]) for key in measures[0] if all(key in m for m in measures)
    }
    of_all["loss"] = lambda w: float(w @ losses[:, 0] / (w @ losses[:, 1]))
    return of_all, losses, measures


def resampled_regression(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Resampled:
    """Return the scores of `score_regression` as functions of how often each row is drawn."""
    of_all = _measures(records, names)[0]
    return lambda weights: {key: measure(weights) for key, measure in of_all.items()}


def _mean(measures: Sequence[Measure]) -> Measure:
    return lambda weights: math.fsum(measure(weights) for measure in measures) / len(measures)


def measures_of(true: Array, predicted: Array) -> dict[str, Measure]:
    """Return the scores of one target as functions of the weights of the rows."""
    errors = predicted - true
    found: dict[str, Measure] = {
        "mse": lambda w: float(w @ errors**2 / w.sum()),
        "mae": lambda w: float(w @ np.abs(errors) / w.sum()),
    }
    if np.ptp(true) > 0:
        first, second = _groups(true), _groups(predicted)
        found["r2"] = lambda w: _determination(true, errors, w)
        found["pearson"] = lambda w: correlation(true, predicted, w)
        found["spearman"] = lambda w: correlation(_ranks(first, w), _ranks(second, w), w)
    return found


def _determination(true: Array, errors: Array, w: Array) -> float:
    spread = _spread(true, w)
    return 1 - float(w @ errors**2 / spread) if spread > 0 else math.nan


def correlation(a: Array, b: Array, w: Array) -> float:
    """Return Pearson's correlation of weighted rows: NaN if all of `a` are equal, 0 if only all of `b` are."""
    spreads = _spread(a, w), _spread(b, w)
    if spreads[0] <= 0:
        return math.nan
    if spreads[1] <= 0:
        return 0.0
    product = w @ ((a - w @ a / w.sum()) * (b - w @ b / w.sum()))
    return float(np.clip(product / math.sqrt(spreads[0]) / math.sqrt(spreads[1]), -1, 1))


def _spread(values: Array, w: Array) -> float:
    """Return the summed squares of distances from the mean of weighted rows; 0 for equal ones in spite of rounding."""
    return 0.0 if np.ptp(values[w > 0]) == 0 else float(w @ (values - w @ values / w.sum()) ** 2)


def _groups(values: Array) -> tuple[Array, Array]:
    """Return the order of the values and, in this order, the number of the group of equal ones."""
    order = np.argsort(values, kind="stable")
    return order, np.append(0, np.cumsum(np.diff(values[order]) > 0))


def _ranks(groups: tuple[Array, Array], w: Array) -> Array:
    """Return the mean rank of each row, if each row occurs as often as its weight."""
    order, group = groups
    sizes = np.bincount(group, w[order])
    ranks = np.empty(len(order))
    ranks[order] = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks


def values_of(value: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers of a record's target or prediction: one number, or a mapping by name."""
    return [value[name] for name in names] if isinstance(value, Mapping) else [value]


def _check(record: Record, names: Sequence[str]) -> None:
    for key in ("target", "prediction"):
        found = record.get(key)
        numbers = list(found.values()) if isinstance(found, Mapping) and found.keys() == set(names) else [found]
        if len(numbers) != len(names) or not all(type(x) in (int, float) for x in numbers):
            expected = "a number" if len(names) == 1 else f"a number for each of {', '.join(names)}"
            raise DataError(f"prediction {record['id']!r}: {key} is {found!r}; {expected} is expected")
        if not all(map(math.isfinite, [*numbers, record.get("loss", math.nan)])):
            raise NumericsError(f"prediction {record['id']!r}: loss or {key} is not finite; the weights diverged")
