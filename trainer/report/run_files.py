"""What reports and model card read from a run directory. No torch here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import Record, read_predictions
from trainer.recipe import read_yaml
from trainer.redaction import shareable
from trainer.rundir import RunDir, read_json


@dataclass(frozen=True)
class RunFiles:
    """Recipe, manifest, status and history of a run, and scores and records of one of its splits."""

    run: RunDir
    split: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    scores: dict[str, Any]
    history: list[dict[str, Any]]
    records: list[Record] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """evaluation/<split>/ of the run."""
        return self.run.evaluation(self.split)

    @property
    def recipe_text(self) -> str:
        """recipe.yaml as a page shows it."""
        return str(shareable(self.run.recipe.read_text(encoding="utf-8")))

    @property
    def kind(self) -> str:
        return str(self.recipe["task"]["kind"])

    @property
    def stage(self) -> dict[str, Any]:
        """Which weights the run uses, from the manifest."""
        found: dict[str, Any] = self.manifest.get("stages", {}).get("model", {})
        return found


def read_files(run: RunDir, split: str) -> dict[str, Any]:
    """The fields of `RunFiles` without the records.

    Raises:
        DataError: no run directory.
        CheckpointError: a JSON file of the run is damaged.
    """
    return {
        "run": run,
        "split": split,
        "recipe": shareable(_recipe(run)),
        "manifest": shareable(read_json(run.manifest) or {}),
        "status": read_json(run.status) or {},
        "scores": read_json(run.evaluation(split) / "metrics.json") or {},
        "history": _history(run.metrics),
    }


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


def _recipe(run: RunDir) -> dict[str, Any]:
    if not run.recipe.is_file():
        raise DataError(f"{run.path} is no run directory: recipe.yaml is missing")
    try:
        recipe = read_yaml(run.recipe)
    except UsageError as error:
        raise DataError(str(error)) from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("task"), dict) or "kind" not in recipe["task"]:
        raise DataError(f"{run.recipe} has no task.kind; restore it")
    return recipe


def _history(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last one that a kill left half written is not a line yet."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines
