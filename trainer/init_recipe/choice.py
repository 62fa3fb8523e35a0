"""Choose the task that fits the columns of a file best."""

from __future__ import annotations

import json
from collections.abc import Mapping

from trainer.data.profile import Table
from trainer.data.roles import Label
from trainer.errors import UsageError
from trainer.task.registry import class_of_kind, task_classes
from trainer.task.suggestion import Suggestion

LEAST = 0.5  # fit of a task that is taken without --task
POSSIBLE = 0.3  # fit of a task that is listed as an alternative


def choose(path: str, table: Table, kind: str | None, columns: Mapping[str, str]) -> tuple[Suggestion, list[str]]:
    """Return the suggestion of the task that fits best, and the kinds of others that fit."""
    classes = {kind: class_of_kind(kind)} if kind is not None else task_classes()
    every = {name: task.suggest(table, columns) for name, task in classes.items()}
    fitting = {name: one for name, one in every.items() if one is not None}
    best = max(fitting, key=lambda name: fitting[name].fit, default=None)
    if best is not None and (kind is not None or fitting[best].fit >= LEAST):
        return fitting[best], [name for name, one in fitting.items() if name != best and one.fit >= POSSIBLE]
    there = ", ".join(f"{name!r} ({_described(table, name)})" for name in list(table.columns)[:8])
    if reason := _reason(table):
        raise UsageError(f"init: {path}: {reason}")
    task = f"task {kind}" if kind else "a task"
    fix = "name the columns as data.columns={text: COLUMN, label: COLUMN}"
    if kind is None and fitting:
        fix += f", or choose --task {' or --task '.join(fitting)}"
    raise UsageError(f"init: {path} has no columns that fit {task}; columns there: {there}. To decide, {fix}")


def _reason(table: Table) -> str:
    """Return why no task fits, with the fix, if it is a usual mistake."""
    for column in table.columns.values():
        items = [item for value in column.first if isinstance(value, list) for item in value]
        if len(table.columns) == 1 and table.rows == 1 and items and all(isinstance(item, Mapping) for item in items):
            return (
                f"the rows are below the key {column.name!r}: jq -c '.[{json.dumps(column.name)}][]' FILE > rows.jsonl"
            )
    single = [column for column in table.columns.values() if len(column.labels) == 1 and column.filled > 1]
    named = [column for column in single if column.name.strip().lower() in Label.synonyms.split()]
    if named and table.rows > 1:
        value = next(iter(named[0].labels))
        return f"column {named[0].name!r} has one value, {value!r}: a classifier needs rows of two or more classes"
    return ""


def _described(table: Table, name: str) -> str:
    column = table.columns[name]
    if column.kind == "empty":
        return "empty"
    return f"{column.kind}, {column.different} different"
