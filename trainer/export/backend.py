"""A published artifact as `rankzero predict --backend` uses it: ONNX through the same run.py that ships with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from trainer.engine.trained_run import TrainedRun
from trainer.errors import CheckpointError, UsageError
from trainer.export.artifact_integrity import read_gate
from trainer.export.program import load
from trainer.export.weights import TYPES, read_weights
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.base import Record

BACKENDS = ("onnx", "int8", *TYPES)


def open_artifact(run: RunDir, name: str) -> Callable[[Iterable[str]], Iterator[Record]]:
    """The artifact of a run; call it with texts for one record each, with the keys of `TrainedRun.predict`, in order.

    Raises:
        UsageError: there is no such artifact: not exported yet, or kept out by its gate.
        CheckpointError: a file of it is damaged or missing.
    """
    folder: Path = run.export / name
    if name not in BACKENDS:
        raise UsageError(f"--backend {name} is unknown; allowed: torch, {', '.join(BACKENDS)}")
    verdict = read_gate(folder)
    if verdict is None and (reason := run.reasons().get(name)):
        raise UsageError(f"--backend {name}: there can be none ({reason}); allowed: torch, {', '.join(TYPES)}")
    if verdict is None:
        command = f"rankzero export {run.path}" + (f" export.{name}=true" if name in TYPES else "")
        raise UsageError(f"--backend {name}: {run.path} has no {name} artifact yet; make it with `{command}`")
    if not verdict["passed"]:
        why = ", ".join(verdict["failed"])
        raise UsageError(f"--backend {name}: the artifact failed its gate ({why}; see {folder / 'gate.json'})")
    try:
        if name not in TYPES:
            return load(folder)
        task = TrainedRun.task_of(run, Recipe)
        return TrainedRun(run, task.recipe, task, read_weights(task, folder, TYPES[name])).predict
    except Exception as error:  # onnxruntime, safetensors and tokenizers have types of their own
        raise CheckpointError(
            f"{folder} cannot be read ({error}); make it again with `rankzero export {run.path}`"
        ) from error
