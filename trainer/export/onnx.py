"""ONNX graphs of a trained model, and beside them everything that is needed to use them without this package.

A model is exported with SDPA, which becomes an operator of its own; one that cannot be, with its eager attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import GateError
from trainer.export.answers import greedy
from trainer.export.exporter import prepared, quiet
from trainer.export.graphs import EXPORTERS, input_names
from trainer.export.program import NAME, source
from trainer.rundir import write_json
from trainer.task.base import Task


def write_artifact(task: Task, model: nn.Module, folder: Path) -> None:
    """Graphs in fp32, tokenizer.json, settings.json and run.py.

    Args:
        task: with the recipe and the tokenizer; its artifact is one of `EXPORTERS`.
        model: trained, on the CPU; it is left as it is.
        folder: exists and is empty.

    Raises:
        GateError: the model cannot be exported.
    """
    failed: dict[str, Exception] = {}
    for attention in ("sdpa", "eager"):
        ready = prepared(model, attention)
        own = getattr(getattr(getattr(ready, "trunk", ready), "config", None), "_attn_implementation", attention)
        if own in failed:  # an architecture with one way only
            continue
        try:
            with quiet():
                EXPORTERS[task.artifact](task, ready, folder)
            break
        except Exception as error:  # whatever the exporter meets in an architecture
            failed[own] = error
    else:
        *_, reason = failed.values()
        why = str(reason).strip().partition("\n")[0]
        raise GateError(
            f"{type(model).__name__} cannot be exported to ONNX: {why}; set export.onnx=false export.int8=false"
        ) from reason
    task.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "settings.json", settings(task, model))
    (folder / NAME).write_text(source(task.artifact, task.recipe.data.cleaning), encoding="utf-8")


def settings(task: Task, model: nn.Module) -> dict[str, Any]:
    """What run.py needs besides graphs and tokenizer."""
    recipe: Any = task.recipe
    shared = {
        "format": 1,
        "name": recipe.name,
        "task": task.kind,
        "program": task.artifact,
        "cleaning": recipe.data.cleaning,
        "prefix": "",
        "max_length": recipe.data.max_length,
        "pad_id": task.pad_id,
        "tokens_per_batch": recipe.evaluation.tokens_per_batch,
        "one_by_one": False,
        "pair": False,
        "left": task.padding.left,
    }
    return shared | SETTINGS[task.artifact](task, model)


def _classifier(task: Any, _: nn.Module) -> dict[str, Any]:
    config = task.recipe.task
    return {
        "pair": config.pair,
        "labels": config.names,
        "layout": [list(part) for part in task.layout.parts],
        "head_share": {"head": 1.0, "tail": 0.0, "head_tail": config.head_share}[config.truncation],
        "inputs": input_names(task),
    }


def _translator(task: Any, _: nn.Module) -> dict[str, Any]:
    return _search(task) | {
        "before": [],
        "after": [task.eos_id],
        "prefix_length": 0,
        "longest": task.recipe.data.max_length - 1,
        "start_id": task.bos_id,
        "banned": [token for token in (task.bos_id, task.pad_id) if token != task.eos_id],
    }


def _text_to_text(task: Any, model: Any) -> dict[str, Any]:
    before, after = task.around
    return _search(task) | {
        "prefix": task.settings.prefix,
        "before": before,
        "after": after,
        "prefix_length": task.prefix_length,
        "longest": task.target_length,
        "start_id": model.config.decoder_start_token_id,
        "banned": [] if task.pad_id == task.eos_id else [task.pad_id],
    }


def _search(task: Any) -> dict[str, Any]:
    evaluation = task.recipe.evaluation
    return {
        "eos_id": task.eos_id,
        "vocab_size": len(task.tokenizer),
        "beam_size": evaluation.beam_size,
        "length_penalty": evaluation.length_penalty,
        "max_length_factor": evaluation.max_length_factor,
    }


def _generator(task: Any, _: nn.Module) -> dict[str, Any]:
    return {
        "left": True,
        "start_id": task.start_id,
        "eos_id": task.end_id,
        "new_tokens": greedy(task).new_tokens,
        "search": "greedy",
    }


SETTINGS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "classification": _classifier,
    "translation": _translator,
    "text_to_text": _text_to_text,
    "generation": _generator,
}
