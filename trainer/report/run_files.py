"""What reports and model card read from a run directory. No torch here."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from trainer.errors import OF_FORM, CheckpointError, DataError, RankzeroError, UsageError
from trainer.evaluation.predictions import Record, read_predictions
from trainer.recipe import read_yaml
from trainer.rundir import RunDir


@contextlib.contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn errors about the form of a run's files into one that names the run: it may be damaged, or someone else's.

    Raises:
        CheckpointError: in place of such an error, which stays its cause (`--debug` shows it).
    """
    try:
        yield
    except RankzeroError:
        raise
    except (*OF_FORM, TemplateError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise CheckpointError(
            f"{where}: a file of the run does not have the form that rankzero writes: {type(error).__name__}: "
            f"{str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno}). Restore it, or evaluate and report again"
        ) from error


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
