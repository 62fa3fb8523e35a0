"""Artifacts of all kinds, made of the runs of `export_helpers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export_helpers import Exported

from trainer.artifact_kinds import KINDS
from trainer.export.conversions import Conversion, convert
from trainer.export.gates import Gate, SearchGate


def quiet(text: str) -> None:
    pass


def convert_to(name: str, made: Exported, folder: Path, fault: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Make an artifact in `folder` and return its gate's result. `fault` changes the folder before the gate."""
    kind = KINDS[name]
    rows, answered = made.rows()
    folder.mkdir()

    def gate() -> dict[str, Any]:
        if fault is not None:
            fault(folder)
        checks = SearchGate if kind.own_search else Gate
        return checks(name, folder, rows, answered, quiet).run()

    return convert(Conversion(kind, rows, made.folder if kind.from_graphs else None, folder, gate, quiet))
