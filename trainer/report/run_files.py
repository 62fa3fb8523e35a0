"""What reports and model card read from a run directory. No torch here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import Record, read_predictions
from trainer.recipe import read_yaml
from trainer.rundir import RunDir


def read_recipe(run: RunDir) -> dict[str, Any]:
    """recipe.yaml as it is stored.

    Raises:
        DataError: no run directory, or no recipe.
    """
    if not run.recipe.is_file():
        raise DataError(f"{run.path} is no run directory: recipe.yaml is missing")
    try:
        recipe = read_yaml(run.recipe)
    except UsageError as error:
        raise DataError(str(error)) from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("task"), dict) or "kind" not in recipe["task"]:
        raise DataError(f"{run.recipe} has no task.kind; restore it")
    return recipe


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last one that a kill left half written is not a line yet."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def read_records(run: RunDir, split: str) -> Iterator[Record]:
    """Yield the records of predictions.jsonl, at least one.

    Raises:
        DataError: the split was not evaluated, or has no row.
    """
    path = run.evaluation(split) / "predictions.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing: evaluate the split first (rankzero evaluate {run.path} --split {split})")
    empty = True
    for record in read_predictions(path):
        empty = False
        yield record
    if empty:
        raise DataError(f"{path} is empty: there is no row to analyse")
