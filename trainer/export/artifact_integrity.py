"""The content of gate.json, with the sizes and hashes of an artifact's files, and their comparison. No torch here."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.files import inside, read_json
from trainer.stages import file_facts, unchanged

FORMAT = 2
UNCHECKED = ("gate.json", "README.md")  # the model card is written after the gate


def completed(
    gate: dict[str, Any], folder: Path, started: float, inputs: dict[str, Any], packages: Sequence[str]
) -> dict[str, Any]:
    """Return the content of gate.json: checks, the files that they hold for, inputs, and versions of these packages.

    Args:
        started: the time at which the artifact was begun.
    """
    files = {name: file_facts(folder / name) for name in files_of(folder) if name not in UNCHECKED}
    versions = {name: importlib.metadata.version(name) for name in packages if find_spec(name.replace("-", "_"))}
    seconds = round(time.time() - started, 1)
    return {"format": FORMAT, **gate, "seconds": seconds, "files": files, "inputs": inputs, "versions": versions}


def decided(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return gate.json if its checks were of the same inputs, and need not be repeated."""
    gate = read_gate(folder)
    if gate is None or not unchanged(inputs, gate["inputs"]):
        return None
    # a failed check is deterministic; a library error may not be, so retry only the latter
    again = problems(folder) if gate["passed"] else ["error" in check for check in (gate, *gate["checks"].values())]
    return None if any(again) else gate


def read_gate(folder: Path) -> dict[str, Any] | None:
    """Return the gate.json of an artifact, None if there is none.

    Raises:
        CheckpointError: a key is missing.
    """
    gate: dict[str, Any] | None = read_json(folder / "gate.json")
    lacking = [key for key in ("passed", "failed", "checks", "files", "inputs") if gate is not None and key not in gate]
    if lacking:
        raise CheckpointError(f"{folder / 'gate.json'} lacks {', '.join(lacking)}; restore it")
    return gate


def problems(folder: Path, gate: dict[str, Any] | None = None) -> list[str]:
    """Return how an artifact differs from its gate.json; empty for a complete artifact that passed its gate.

    Args:
        gate: the gate.json if it was read before.
    """
    gate = gate or read_gate(folder)
    if gate is None:
        return [f"{folder / 'gate.json'} is missing"]
    if not gate["passed"]:
        return [f"{folder}: failed its gate: {', '.join(map(str, gate['failed']))}"]
    known = gate["files"]
    wrong = [name for name in known if inside(folder, name) is None or file_facts(folder / name) != known[name]]
    more = [name for name in files_of(folder) if name not in (*known, *UNCHECKED)]  # run.py loads every graph it sees
    return [
        *(f"{folder / name} is missing or not the file that passed the gate" for name in wrong),
        *(f"{folder / name} is not part of the artifact that passed the gate" for name in more),
    ]


def files_of(folder: Path) -> list[str]:
    """Return the paths in an artifact, relative to it. Caches of Python and temporary files are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith((".", "_")) for part in path.parts))
