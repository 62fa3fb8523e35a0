"""Documents and recipes of tiny causal language models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.data.tokenization import train_tokenizer
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

Document = Callable[[random.Random], str]


def write_documents(root: Path, document: Document, **rows: int) -> Path:
    """So many rows of each split."""
    draw = random.Random(5)
    for name, count in rows.items():
        lines = [json.dumps({"text": document(draw)}) + "\n" for _ in range(count)]
        (root / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def causal_recipe(root: Path | str, own: dict[str, Any], sections: dict[str, Any]) -> Any:
    """`own`: what a file of tests wants for all of them; `sections`: what one of them changes."""
    values: dict[str, Any] = {
        "task": {"kind": "language_modeling", "objective": "causal"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1, "ledger": True},
        "evaluation": {"bootstrap": 20, "splits": ["test"], "generation": {"new_tokens": 6}},
        "export": {"model": False, "onnx": False, "int8": False},
        **own,
    }
    data = {"root": str(root), "train": "train.jsonl", "test": "test.jsonl", "validation": 0.1, "lanes": 4}
    values["data"] = {**data, **own["data"]}
    for name, changes in sections.items():
        values[name] = {**values[name], **changes} if isinstance(changes, dict) else changes
    return Recipe.parse(values)


def task_with(made: Any, document: Document) -> Any:
    """The task of a recipe, with a tokenizer of its own."""
    draw = random.Random(1)
    texts = [document(draw) for _ in range(50)]
    return make_task(made, train_tokenizer(texts, made.tokenizer_training, made.data.max_length))
