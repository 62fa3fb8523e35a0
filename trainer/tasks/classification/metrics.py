"""Scores of classifications, each with a bootstrap interval. The arithmetic is scikit-learn's.

All sums are in corpus order, in float64.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError, NumericsError
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import RESAMPLES, SEED, Resampled, Score, bootstrap_interval, percentiles

BINS = 15  # of equal width, for the calibration error
MOST_CELLS = 5_000_000_000  # rows x classes x resamples up to which the intervals of the areas are computed
Array = np.ndarray[Any, Any]


def interval_of(score: Callable[[Array], float], rows: int, resamples: int, seed: int) -> list[float] | None:
    """95% percentile interval of a score that is a function of how often each row is drawn, weights (rows,).

    Resamples in which the score is NaN are left out; None where fewer than half are left, of too few rows.
    """
    draw = np.random.default_rng(seed)
    drawn = (np.bincount(draw.integers(0, rows, rows), minlength=rows) for _ in range(resamples))
    found = [value for weights in drawn if math.isfinite(value := score(weights.astype(np.float64)))]
    return percentiles(found) if 2 * len(found) >= resamples else None


def class_scores(
    predictions: npt.ArrayLike, references: npt.ArrayLike, classes: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Score]:
    """From class ids (rows,): accuracy; precision, recall and F1 (macro); Matthews' correlation.

    Macro averages are over the classes that occur as truth or as prediction, as in scikit-learn. A class that is never
    predicted has precision 0.
    """
    pairs = np.asarray(references) * classes + np.asarray(predictions)
    scores: dict[str, Score] = dict(from_confusion(_confusion(pairs, classes)))
    if resamples:
        draw, rows = np.random.default_rng(seed), len(pairs)
        drawn = (pairs[draw.integers(0, rows, rows)] for _ in range(resamples))
        made = [from_confusion(_confusion(sample, classes)) for sample in drawn]
        scores |= {f"{name}_ci95": percentiles(one[name] for one in made) for name in made[0]}
    return scores


def _confusion(pairs: Array, classes: int) -> Array:
    """Counts [true class, predicted class] from true * classes + predicted."""
    return np.bincount(pairs, minlength=classes * classes).astype(np.float64).reshape(classes, classes)


def from_confusion(counts: Array) -> dict[str, float]:
    """The scores of a table [true class, predicted class]; equal to scikit-learn's with zero_division=0.

    As there, a class that is neither a true nor a predicted one is in no average.
    """
    occurring = counts.sum(0) + counts.sum(1) > 0
    hit, true, predicted = (values[occurring] for values in (np.diag(counts), counts.sum(1), counts.sum(0)))
    rows = counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(predicted > 0, hit / predicted, 0.0)
        recall = np.where(true > 0, hit / true, 0.0)
    f1 = 2 * hit / (true + predicted)
    spread = (rows**2 - (predicted**2).sum()) * (rows**2 - (true**2).sum())  # Gorodkin's R_K, for any number of classes
    mcc = (hit.sum() * rows - (true * predicted).sum()) / math.sqrt(spread) if spread > 0 else 0.0
    return {
        "accuracy": float(hit.sum() / rows),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
        "mcc": float(mcc),
    }


def probability_scores(
    shares: npt.ArrayLike,
    predictions: npt.ArrayLike,
    references: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Score]:
    """From probabilities (rows, classes) and class ids (rows,): area under the ROC curve, average precision (both: mean
    over the classes, one against the rest, for more than two), expected calibration error (Guo et al. 2017) over 15
    bins of equal width.

    Areas are left out where a class does not occur. Their intervals are left out where a class is so rare that most
    resamples lack it, and where they would take more than minutes (MOST_CELLS).
    """
    p, predicted, true = np.asarray(shares), np.asarray(predictions), np.asarray(references)
    measures: dict[str, Callable[[Array | None], float]] = {"ece": lambda w: calibration_error(p, predicted, true, w)}
    if len(np.unique(true)) == p.shape[1]:
        ranking = Ranking(p, true)
        measures |= {"roc_auc": ranking.roc_auc, "average_precision": ranking.average_precision}
    scores: dict[str, Score] = {name: measure(None) for name, measure in measures.items()}
    if resamples:
        for name, measure in measures.items():
            if name != "ece" and p.size * resamples > MOST_CELLS:
                continue
            if interval := interval_of(measure, len(true), resamples, seed):
                scores[f"{name}_ci95"] = interval
    return scores


class Ranking:
    """Rows sorted by the probability of each class, once for all resamples.

    The areas equal scikit-learn's `roc_auc_score` and `average_precision_score` of one class against the rest, averaged
    over the classes. Those sort at each call: 150 classes and 1,000 resamples would take a quarter of an hour.
    """

    def __init__(self, p: Array, true: Array) -> None:
        """p: probabilities (rows, classes). true: class ids (rows,). Of two classes only the second is ranked."""
        self.true, self.classes = true, p.shape[1]
        self._ranked = [_ranked(p[:, c], true == c) for c in (range(self.classes) if self.classes > 2 else [1])]

    def roc_auc(self, weights: Array | None = None) -> float:
        """Area under the ROC curve, each row counted `weights` (rows,) times. NaN where a class has no row left."""
        return self._mean(weights, _area)

    def average_precision(self, weights: Array | None = None) -> float:
        """Average precision, weighted likewise."""
        return self._mean(weights, _precision)

    def _mean(self, weights: Array | None, measure: Callable[[Array, Array, Array, Array], float]) -> float:
        w = np.ones(len(self.true)) if weights is None else weights
        if not np.bincount(self.true, w, self.classes).all():
            return math.nan
        values = []
        for order, positive, first, last in self._ranked:
            hits, rest = (np.concatenate([[0.0], np.cumsum(w[order] * part)]) for part in (positive, ~positive))
            values.append(measure(hits[first], hits[last], rest[first], rest[last]))
        return float(np.mean(values))


def _ranked(scores: Array, positive: Array) -> tuple[Array, Array, Array, Array]:
    """Rows by falling score, which of them are positive, and where each group of equal scores begins and ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])) + 1, len(scores))
    return order, positive[order], np.append(0, ends[:-1]), ends


def _area(hits: Array, hits_after: Array, rest: Array, rest_after: Array) -> float:
    """Trapezoids between the thresholds; sums of weights before and after each group of equal scores."""
    return float(((rest_after - rest) * (hits + hits_after)).sum() / 2 / (hits_after[-1] * rest_after[-1]))


def _precision(hits: Array, hits_after: Array, rest: Array, rest_after: Array) -> float:
    total = hits_after + rest_after
    precision = np.divide(hits_after, total, out=np.zeros_like(total), where=total > 0)
    return float(((hits_after - hits) * precision).sum() / hits_after[-1])


def calibration_error(p: Array, predicted: Array, true: Array, weights: Array | None = None) -> float:
    """Mean distance between confidence and accuracy over the bins of confidence, weighted by their rows.

    Confidence is the probability of the predicted class, which with a threshold may not be the most probable one.
    """
    w = np.ones(len(true)) if weights is None else weights
    confidence, right = p[np.arange(len(p)), predicted], (predicted == true).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, w * (confidence - right), minlength=BINS)
    return float(np.abs(gap).sum() / w.sum())


def score_classification(
    records: Iterable[Mapping[str, Any]], names: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, Score]:
    """All scores of a split from its prediction records, in any order. 0 `resamples`: no intervals.

    Returns:
        accuracy, f1, precision, recall, mcc, roc_auc, average_precision, ece (as shares of 1), loss (mean
        cross-entropy of a row, nats), an interval [low, high] of each as `*_ci95`, rows. The two areas are left out
        where a class does not occur, their intervals where a class is so rare that most resamples lack it. Where the
        truth lacks classes, absent_classes holds their names.

    Raises:
        DataError: no records, an id missing or twice, or a class that is not among `names`; names id and key.
        NumericsError: a loss or probability is NaN or Inf; names the id.
    """
    true, predicted, shares, losses = _columns(records, names)
    scores = class_scores(predicted, true, len(names), resamples=resamples)
    scores |= probability_scores(shares, predicted, true, resamples=resamples)
    scores["loss"] = math.fsum(losses) / len(losses)
    if resamples:
        table = np.column_stack([losses, np.ones(len(losses))])
        scores["loss_ci95"] = bootstrap_interval(table, lambda sums: sums[0] / sums[1], resamples)
    there = set(true.tolist())
    absent = [name for number, name in enumerate(names) if number not in there]
    return scores | {"rows": len(losses)} | ({"absent_classes": absent} if absent else {})


def _columns(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> tuple[Array, Array, Array, Sequence[float]]:
    """Return true and predicted class ids (rows,), probabilities (rows, classes) and losses, in corpus order."""
    ids = {name: i for i, name in enumerate(names)}
    targets, predicted, shares, losses = array("q"), array("q"), array("d"), array("d")
    for record in checked_records(records, lambda record: _check(record, ids)):
        targets.append(ids[record["target"]])
        predicted.append(ids[record["prediction"]])
        shares.extend(record["probabilities"][name] for name in names)
        losses.append(float(record["loss"]))
    return np.array(targets), np.array(predicted), np.frombuffer(shares).reshape(-1, len(names)), losses


def resampled_classes(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Resampled:
    """Return the scores of `score_classification` as functions of how often each row is drawn.

    The areas are left out where a class does not occur, and where their resamples would take more than a minute.
    """
    true, predicted, shares, losses = _columns(records, names)
    pairs, classes, loss = true * len(names) + predicted, len(names), np.asarray(losses)
    measures: dict[str, Callable[[Array], float]] = {"ece": lambda w: calibration_error(shares, predicted, true, w)}
    if len(np.unique(true)) == classes and shares.size * RESAMPLES <= MOST_CELLS // 10:
        ranking = Ranking(shares, true)
        measures |= {"roc_auc": ranking.roc_auc, "average_precision": ranking.average_precision}
    measures["loss"] = lambda w: float(w @ loss / w.sum())

    def scores(weights: Array) -> dict[str, float]:
        counts = np.bincount(pairs, weights, classes * classes).reshape(classes, classes)
        return from_confusion(counts) | {name: measure(weights) for name, measure in measures.items()}

    return scores


def _check(record: Record, ids: Mapping[str, int]) -> None:
    for key in ("target", "prediction"):
        if record.get(key) not in ids:
            raise DataError(f"prediction {record['id']!r}: {key} is {record.get(key)!r}; known: {', '.join(ids)}")
    probabilities = record.get("probabilities")
    if not isinstance(probabilities, dict) or probabilities.keys() != ids.keys():
        raise DataError(f"prediction {record['id']!r}: probabilities need exactly the classes {', '.join(ids)}")
    if not all(map(math.isfinite, [record.get("loss", math.nan), *probabilities.values()])):
        raise NumericsError(f"prediction {record['id']!r}: loss or probabilities are not finite; the weights diverged")
