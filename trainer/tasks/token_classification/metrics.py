"""Entity-level scores: an entity is right if its boundaries and its type are.

The counts are those of the conlleval script and of `seqeval`. Intervals are percentiles of a bootstrap over rows.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from trainer.errors import DataError, NumericsError
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import RESAMPLES, SEED, WINDOW, Resampled, percentiles
from trainer.tasks.token_classification.errors import KINDS, compare

Array = np.ndarray[Any, Any]
RIGHT, PREDICTED, TRUE = range(3)


def counts(records: Sequence[Mapping[str, Any]], types: Sequence[str]) -> Array:
    """Return the right, predicted and true entities of each type, (rows, types, 3)."""
    ids = {name: i for i, name in enumerate(types)}
    table = np.zeros((len(records), len(types), 3))
    for row, record in zip(table, records, strict=True):
        predicted, true = ({key_of(entity) for entity in record[key]} for key in ("prediction", "target"))
        for column, found in ((RIGHT, predicted & true), (PREDICTED, predicted), (TRUE, true)):
            for _, _, label in found:
                row[ids[label], column] += 1
    return table


def key_of(entity: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return what identifies an entity of a text."""
    return entity["start"], entity["end"], entity["label"]


def f_scores(sums: Array) -> tuple[Array, Array, Array]:
    """Return precision, recall and F1 of counts (…, 3); 0 where a denominator is 0."""
    right, predicted, true = sums[..., RIGHT], sums[..., PREDICTED], sums[..., TRUE]
    return _ratio(right, predicted), _ratio(right, true), _ratio(2 * right, predicted + true)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def summary(sums: Array) -> dict[str, float]:
    """Return the micro-averaged scores and the macro-averaged F1 of summed counts (types, 3)."""
    precision, recall, f1 = f_scores(sums.sum(0))
    occurring = sums[:, PREDICTED] + sums[:, TRUE] > 0
    macro = f_scores(sums)[2][occurring]
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "macro_f1": float(macro.mean()) if len(macro) else 0.0,
    }


def score_entities(
    records: Iterable[Mapping[str, Any]], types: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return all scores of a split from its prediction records, in any order. 0 `resamples`: no intervals.

    Returns:
        f1, precision, recall (micro), macro_f1 (over the types that occur), loss (mean of a labeled piece, nats), each
        with an interval [low, high] as `*_ci95`; `*_by_type`; entities by type; error kinds; rows.

    Raises:
        DataError: no records, an id missing or twice, or a type that is not among `types`; names the id.
        NumericsError: a loss is NaN or Inf; names the id.
    """
    table, losses, kinds = _counted(records, types)
    sums = _sums(table)
    by_type = dict(zip(("precision", "recall", "f1"), f_scores(sums), strict=True))
    scores: dict[str, Any] = {**summary(sums), "loss": _mean(losses.sum(0))}
    scores |= {f"{name}_by_type": dict(zip(types, values.tolist(), strict=True)) for name, values in by_type.items()}
    scores["entities_by_type"] = dict(zip(types, map(int, sums[:, TRUE]), strict=True))
    scores["errors_by_kind"] = {kind: kinds[kind] for kind in KINDS}
    return scores | (_intervals(table, losses, types, resamples) if resamples else {}) | {"rows": len(table)}


def _counted(records: Iterable[Mapping[str, Any]], types: Sequence[str]) -> tuple[Array, Array, Counter[str]]:
    """Return counts of entities (rows, types, 3), losses and tokens (rows, 2), and errors by kind, in corpus order."""
    parts, numbers, kinds = [], array("d"), Counter[str]()
    found = checked_records(records, lambda record: _check(record, types))
    while window := list(islice(found, WINDOW)):
        parts.append(counts(window, types).astype(np.int32))
        for record in window:
            numbers.extend((float(record["loss"]), record["tokens"]))
            kinds.update(error.kind for error in compare(record["target"], record["prediction"]))
    return np.concatenate(parts), np.frombuffer(numbers).reshape(-1, 2), kinds


def resampled_entities(records: Iterable[Mapping[str, Any]], types: Sequence[str]) -> Resampled:
    """Return precision, recall, F1, macro F1 and loss as functions of how often each row is drawn."""
    found, losses, _ = _counted(records, types)
    table = found.reshape(len(found), -1).astype(np.float64)
    return lambda w: summary((w @ table).reshape(found.shape[1:])) | {"loss": _mean(w @ losses)}


def _sums(table: Array) -> Array:
    return np.asarray(table.sum(0, dtype=np.float64))


def _mean(sums: Array) -> float:
    return float(sums[0] / max(1, sums[1]))


def _intervals(table: Array, losses: Array, types: Sequence[str], resamples: int) -> dict[str, Any]:
    draw, rows = np.random.default_rng(SEED), len(table)
    sums, made = [], []
    for _ in range(resamples):
        drawn = draw.integers(0, rows, rows)
        sums.append(_sums(table[drawn]))
        made.append(summary(sums[-1]) | {"loss": _mean(losses[drawn].sum(0))})
    f1 = np.array([f_scores(one)[2] for one in sums])
    by_type = {name: percentiles(f1[:, i].tolist()) for i, name in enumerate(types)}
    return {f"{name}_ci95": percentiles(one[name] for one in made) for name in made[0]} | {"f1_by_type_ci95": by_type}


def _check(record: Record, types: Sequence[str]) -> None:
    for key in ("target", "prediction"):
        for entity in record[key]:
            if entity["label"] not in types:
                known = ", ".join(types)
                raise DataError(f"prediction {record['id']!r}: {key} has type {entity['label']!r}; known: {known}")
    if not math.isfinite(record["loss"]):
        raise NumericsError(f"prediction {record['id']!r}: loss is {record['loss']}; the weights have diverged")
