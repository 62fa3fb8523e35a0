"""Gates on artifacts, good ones and ones with planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from export_helpers import Exported

from trainer.export.gates import Gate

Change = Callable[[onnx.ModelProto], None]


def quiet(text: str) -> None:
    pass


def run_gate(made: Exported, folder: Path, name: str = "onnx") -> dict[str, Any]:
    rows, answered = made.rows()
    found = Gate(name, folder, rows, answered, quiet).run()
    json.dumps(found, allow_nan=False)
    assert found["passed"] == (not found["failed"])
    return found


def mutant(made: Exported, folder: Path, change: Change | None = None, graph: str = "model", **settings: Any) -> Path:
    """A copy of the artifact with a changed graph, or changed settings."""
    shutil.copytree(made.folder, folder)
    if change is not None:
        model = onnx.load(folder / f"{graph}.onnx")
        change(model)
        onnx.save(model, folder / f"{graph}.onnx")
    values = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    (folder / "settings.json").write_text(json.dumps(values | settings), encoding="utf-8")
    return folder
