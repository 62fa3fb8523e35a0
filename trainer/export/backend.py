"""A published artifact for `rankzero predict --backend`. Graphs run by the program that ships with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import tee
from pathlib import Path

from trainer.artifact_kinds import KINDS
from trainer.data.python_rows import iter_rows
from trainer.engine.trained_run import TrainedRun
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.export.artifact_integrity import problems, read_gate
from trainer.export.program import load
from trainer.export.stage import impossible
from trainer.export.weights import TYPES, read_weights
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.base import Line, Record, Task
from trainer.task.registry import task_class


def open_artifact(run: RunDir, name: str) -> Callable[[Iterable[Line]], Iterator[Record]]:
    """Open an artifact of a run. Call it with texts or rows for one record each, with the keys of `TrainedRun.predict`.

    Raises:
        UsageError: there is no such artifact: not exported yet, or its gate failed.
        CheckpointError: a file of it is missing, or is not the one that passed the gate.
    """
    folder: Path = run.export / name
    gate = read_gate(folder) if name in KINDS else None
    if gate is None:
        raise _no_artifact(run, name)
    if not gate["passed"]:
        why = ", ".join(gate["failed"])
        raise UsageError(f"--backend {name}: the artifact failed its gate ({why}; see {folder / 'gate.json'})")
    again = f"make it again with `rankzero export {run.path}`"
    if wrong := problems(folder, gate):
        raise CheckpointError(f"{'; '.join(wrong)}; {again}")
    exporter = task_class(Recipe.load(run.recipe)).exporter()
    try:
        task = TrainedRun.task_of(run, Recipe)
        if name not in TYPES:
            return partial(_answer_rows, load(exporter, folder), task)
        return TrainedRun(run, task.recipe, task, read_weights(task, folder, TYPES[name])).predict
    except Exception as error:  # onnxruntime, safetensors and tokenizers have their own types
        raise CheckpointError(f"{folder} cannot be read ({error}); {again}") from error


def _no_artifact(run: RunDir, name: str) -> UsageError:
    """Return the error about an artifact that a run does not have: the command that makes it, or why none can."""
    task = TrainedRun.task_of(run, Recipe)
    reasons = impossible(task, run)
    allowed = f"allowed: torch, {', '.join(kind for kind in KINDS if kind not in reasons)}"
    if name not in KINDS:
        return UsageError(f"--backend {name} is unknown; {allowed}")
    if name in reasons:
        return UsageError(f"--backend {name}: not possible ({reasons[name]}); {allowed}")
    wanted = getattr(task.recipe.export, name) is True
    command = f"rankzero export {run.path}" + ("" if wanted else f" export.{name}=true")
    return UsageError(f"--backend {name}: {run.path} has no {name} artifact yet; make it with `{command}`")


def _answer_rows(
    answer: Callable[[Iterable[str]], Iterator[Record]], task: Task, rows: Iterable[Line]
) -> Iterator[Record]:
    """Yield the records of texts and rows. A row that cannot be read gets an "error", as with the model itself."""

    def checked() -> Iterator[tuple[str, str | None]]:
        for row in iter_rows(rows, task.input_columns.values()):
            error = None
            if not isinstance(row, str):
                try:
                    task.cleaned_row(row)
                except DataError as bad:
                    error = f"DataError: {bad}"
            yield task.line_of(row), error

    here, there = tee(checked())
    answers = iter(answer(line for line, error in there if error is None))
    for line, error in here:
        yield next(answers) if error is None else {"text": line, "error": error}
