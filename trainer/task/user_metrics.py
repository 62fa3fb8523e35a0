"""Metrics of a user's own: functions of the predictions of a split, named by `evaluation.metrics`.

    def off_by_one(records):
        return sum(abs(r["target"] - r["prediction"]) <= 1 for r in records) / len(records)

    off_by_one.direction = "max"  # or "min"; the default is "max"

A function gets the records of predictions.jsonl, and returns a number. It runs once, on rank zero, where
all records are in memory for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

from trainer import user_code
from trainer.errors import RankError, UsageError
from trainer.task.base import Task
from trainer.task.metrics import Metric

SHOWN = 300  # characters of a prediction in a message
Function = Callable[[list[Mapping[str, Any]]], float]


@cache
def with_metrics(task: type[Task], names: tuple[str, ...]) -> type[Task]:
    """Return a subclass of a task that also has the metrics of these names.

    Raises:
        UsageError: a function cannot be imported, or a metric of its name exists.
    """
    functions: dict[str, Function] = {}
    specs = list(task.metric_specs)
    for name in names:
        function, key = user_code.load(name, "evaluation.metrics"), name.partition(":")[2]
        direction: Any = getattr(function, "direction", "max")
        if not callable(function) or direction not in ("min", "max"):
            raise UsageError(
                f"evaluation.metrics: {name!r} is no function, or its attribute direction is not min or max"
            )
        if key in functions or key in task.metrics or any(spec.key == key for spec in specs):
            raise UsageError(f"evaluation.metrics: task {task.kind} already has a metric {key!r}; rename the function")
        functions[key] = function
        meaning = (function.__doc__ or "").strip().partition("\n")[0]
        specs.append(Metric(key, direction, key.replace("_", " ").capitalize(), meaning))

    def score(self: Task, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        rows = records if isinstance(records, Collection) else list(records)
        scores = task.score(self, rows, resamples)
        return scores | {key: _value(key, function, rows) for key, function in functions.items()}

    made: type[Task] = type(
        task.__name__, (task,), {"metric_specs": tuple(specs), "score": score, "__module__": __name__}
    )
    return made


def _value(key: str, function: Function, rows: Collection[Mapping[str, Any]]) -> float:
    """Return the value of a metric.

    Raises:
        RankError: the function fails, or does not return a finite number.
    """
    try:
        value = float(function([dict(row) for row in rows]))
    except Exception as error:
        first = json.dumps(next(iter(rows)), ensure_ascii=False, default=str)[:SHOWN] if rows else "missing"
        raise RankError(
            f"evaluation.metrics: {key} failed on the predictions: {type(error).__name__}: {error}. "
            f"The first one is {first}"
        ) from error
    if not math.isfinite(value):
        raise RankError(f"evaluation.metrics: {key} returned {value}: return a finite number")
    return value
