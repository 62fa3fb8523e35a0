"""Whether an artifact is what was proven: sizes and hashes of its files. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.rundir import read_object


def facts(path: Path) -> dict[str, Any]:
    """Size and hash of a file; of one that is not there neither."""
    if not path.is_file():
        return {"bytes": None, "sha256": None}
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_gate(folder: Path) -> dict[str, Any] | None:
    """The gate.json of an artifact; None when there is none.

    Raises:
        CheckpointError: it does not have the form in which a gate writes it.
    """
    gate = read_object(folder / "gate.json")
    if not gate:
        return None
    forms = {"passed": bool, "failed": list, "checks": dict, "files": dict, "inputs": dict}
    for key, form in forms.items():
        if not isinstance(gate.get(key), form):
            raise CheckpointError(f"{folder / 'gate.json'}: {key} is not of type {form.__name__}; restore it")
    gate["failed"] = [str(name) for name in gate["failed"]]
    return gate


def problems(folder: Path) -> list[str]:
    """What differs between an artifact and the hashes in its gate.json; empty for a published one that is whole."""
    verdict = read_gate(folder)
    if verdict is None:
        return [f"{folder / 'gate.json'} is missing"]
    if not verdict["passed"]:
        return [f"{folder}: failed its gate: {', '.join(verdict['failed'])}"]
    files = verdict["files"]
    wrong = [name for name, known in files.items() if Path(name).name != name or facts(folder / name) != known]
    more = {path.name for path in folder.glob("[!._]*")} - {*files, "gate.json"}  # run.py takes every graph
    return [
        *(f"{folder / name} is missing or not what was proven" for name in wrong),
        *(f"{folder / name} is not part of what was proven" for name in sorted(more)),
    ]
