"""Write an ONNX artifact: the graphs of a trained model, and all that is needed to use them without this package.

A model is exported with SDPA, which becomes one operator. If that fails, its eager attention is exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import GateError
from trainer.export.exporter import prepared, quiet
from trainer.export.program import NAME, source
from trainer.export.task_export import TaskExport
from trainer.rundir import write_json


def write_artifact(export: TaskExport, model: nn.Module, folder: Path) -> None:
    """Write graphs in fp32, tokenizer.json, settings.json and run.py.

    Args:
        export: of the task, with a program.
        model: trained, on the CPU; it is not changed.
        folder: exists and is empty.

    Raises:
        GateError: the model cannot be exported.
    """
    assert export.program is not None
    errors: dict[str, Exception] = {}
    for attention in ("sdpa", "eager"):
        ready = prepared(model, attention)
        used = getattr(getattr(getattr(ready, "trunk", ready), "config", None), "_attn_implementation", attention)
        if used in errors:  # an architecture with only one implementation
            continue
        try:
            with quiet():
                export.write_graphs(ready, folder)
            break
        except Exception as error:  # any error of the exporter with an architecture
            errors[used] = error
    else:
        *_, last = errors.values()
        why = str(last).strip().partition("\n")[0]
        raise GateError(
            f"{type(model).__name__} cannot be exported to ONNX: {why}; set export.onnx=false export.int8=false"
        ) from last
    export.task.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "settings.json", settings(export, model))
    (folder / NAME).write_text(source(export.program, export.task.recipe.data.cleaning), encoding="utf-8")


def settings(export: TaskExport, model: nn.Module) -> dict[str, Any]:
    """Return what run.py needs besides graphs and tokenizer."""
    task, recipe = export.task, export.task.recipe
    shared = {
        "format": 1,
        "name": recipe.name,
        "task": task.kind,
        "program": export.program_name,
        "cleaning": recipe.data.cleaning,
        "prefix": "",
        "max_length": recipe.data.max_length,
        "pad_id": task.pad_id,
        "tokens_per_batch": recipe.evaluation.tokens_per_batch,
        "one_by_one": False,
        "pair": False,
        "left": task.padding.left,
    }
    return shared | export.settings(model)
