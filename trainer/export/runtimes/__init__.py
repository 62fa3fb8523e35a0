"""Open the graphs of an artifact. The module of a runtime becomes a part of the run.py that uses it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.artifact_kinds import RUNTIMES, TORCH
from trainer.errors import UsageError

DEFAULT = "onnxruntime"  # of artifacts whose settings.json names none


def runtime_module(name: str) -> ModuleType:
    """Return the module of a runtime.

    Raises:
        UsageError: there is no such runtime, or its package is not installed. The name may come from a file of a run.
    """
    allowed = [key for key in RUNTIMES if key != TORCH]
    if name not in allowed:
        raise UsageError(f"settings.json: runtime {str(name)[:60]!r} is unknown; allowed: {', '.join(allowed)}")
    try:
        return importlib.import_module(f"trainer.export.runtimes.graphs_{name}")
    except ModuleNotFoundError as error:
        packages = " ".join(RUNTIMES[name].packages)
        raise UsageError(f"this artifact runs by {name}, which is not installed: pip install {packages}") from error


def open_graphs(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the graphs of a folder by name, by the runtime that its settings name."""
    graphs: dict[str, Any] = runtime_module(settings.get("runtime", DEFAULT)).open_graphs(folder, settings)
    return graphs
