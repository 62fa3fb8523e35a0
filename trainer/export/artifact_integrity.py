"""Compare the files of an artifact with the sizes and hashes in its gate.json. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.files import read_json
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
    wrong = [name for name, known in files.items() if Path(name).name != name or file_facts(folder / name) != known]
    more = {path.name for path in folder.glob("[!._]*")} - {*files, "gate.json"}  # run.py loads every graph it sees
    return [
        *(f"{folder / name} is missing or not the file that passed the gate" for name in wrong),
        *(f"{folder / name} is not part of the artifact that passed the gate" for name in sorted(more)),
    ]
