"""Compare the files of an artifact with the sizes and hashes in its gate.json. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.files import inside, read_json
from trainer.stages import file_facts


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


def problems(folder: Path) -> list[str]:
    """Return how an artifact differs from its gate.json; empty for a complete artifact that passed its gate."""
    gate = read_gate(folder)
    if gate is None:
        return [f"{folder / 'gate.json'} is missing"]
    if not gate["passed"]:
        return [f"{folder}: failed its gate: {', '.join(map(str, gate['failed']))}"]
    files = gate["files"]
    wrong = [
        name for name, known in files.items() if inside(folder, name) is None or file_facts(folder / name) != known
    ]
    more = {
        path for path in files_of(folder) if path not in (*files, "gate.json", "README.md")
    }  # run.py loads every graph it sees
    return [
        *(f"{folder / name} is missing or not the file that passed the gate" for name in wrong),
        *(f"{folder / name} is not part of the artifact that passed the gate" for name in sorted(more)),
    ]


def files_of(folder: Path) -> list[str]:
    """Return the paths in an artifact, relative to it. Caches of Python and temporary files are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith((".", "_")) for part in path.parts))
