"""Choose the task that fits the columns of a file best."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.profile import Table
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
    task = f"task {kind}" if kind else "a task"
    fix = "name the columns as data.columns={text: COLUMN, label: COLUMN}"
    if kind is None and fitting:
        fix += f", or choose --task {' or --task '.join(fitting)}"
    raise UsageError(f"init: {path} has no columns that fit {task}; columns there: {there}. To decide, {fix}")


def _described(table: Table, name: str) -> str:
    column = table.columns[name]
    if column.kind == "empty":
        return "empty"
    return f"{column.kind}, {column.different} different"
