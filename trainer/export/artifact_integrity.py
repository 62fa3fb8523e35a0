"""Whether an artifact is what was proven: sizes and hashes of its files. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.rundir import read_json


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
    gate: dict[str, Any] | None = read_json(folder / "gate.json")
    lacking = [key for key in ("passed", "failed", "checks", "files", "inputs") if gate is not None and key not in gate]
    if lacking:
        raise CheckpointError(f"{folder / 'gate.json'} lacks {', '.join(lacking)}; restore it")
    return gate


def problems(folder: Path) -> list[str]:
    """What differs between an artifact and the hashes in its gate.json; empty for a published one that is whole."""
    verdict = read_gate(folder)
    if verdict is None:
        return [f"{folder / 'gate.json'} is missing"]
    if not verdict["passed"]:
        return [f"{folder}: failed its gate: {', '.join(map(str, verdict['failed']))}"]
    files = verdict["files"]
    wrong = [name for name, known in files.items() if Path(name).name != name or facts(folder / name) != known]
    more = {path.name for path in folder.glob("[!._]*")} - {*files, "gate.json"}  # run.py takes every graph
    return [
        *(f"{folder / name} is missing or not what was proven" for name in wrong),
        *(f"{folder / name} is not part of what was proven" for name in sorted(more)),
    ]
