"""A published artifact as `rankzero predict --backend onnx` uses it: through the same run.py that ships with it."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import CheckpointError, UsageError
from trainer.export.run import Classifier, Translator, load
from trainer.rundir import RunDir, read_json

BACKENDS = ("onnx", "int8")


def open_artifact(run: RunDir, name: str) -> Classifier | Translator:
    """The artifact of a run; call it with texts for one record each, with the keys of `Finished.predict`, in order.

    Raises:
        UsageError: there is no such artifact: not exported yet, or kept out by its gate.
        CheckpointError: a file of it is damaged or missing.
    """
    folder: Path = run.export / name
    if name not in BACKENDS:
        raise UsageError(f"--backend {name} is unknown; allowed: torch, {', '.join(BACKENDS)}")
    verdict = read_json(folder / "gate.json")
    if verdict is None:
        raise UsageError(
            f"--backend {name}: {run.path} has no {name} artifact yet; make it with `rankzero export {run.path}`"
        )
    if not verdict["passed"]:
        why = ", ".join(verdict["failed"])
        raise UsageError(f"--backend {name}: the artifact failed its gate ({why}; see {folder / 'gate.json'})")
    try:
        return load(folder)
    except Exception as error:  # onnxruntime and tokenizers have types of their own
        raise CheckpointError(
            f"{folder} cannot be read ({error}); make it again with `rankzero export {run.path}`"
        ) from error
