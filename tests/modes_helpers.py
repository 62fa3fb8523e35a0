"""A tiny corpus with several labels, numbers, pairs and weights per row, and recipes of each mode on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from review_helpers import task_of

from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

WORDS = {"sport": ["ball", "goal", "team"], "food": ["bread", "soup", "cake"], "money": ["bank", "coin", "price"]}
LABELS = list(WORDS)
OTHER = ["the", "a", "film", "was", "with", "and", "very", "some", "it", "this"]
MULTI: dict[str, Any] = {"mode": "multi", "labels": LABELS}
REGRESSION: dict[str, Any] = {"mode": "regression"}


def topic(draw: random.Random) -> dict[str, Any]:
    labels = [label for label in LABELS if draw.random() < 0.4]
    words = draw.choices(OTHER, k=draw.randint(3, 12)) + [draw.choice(WORDS[label]) for label in labels]
    draw.shuffle(words)
    value = 40 + 3.0 * ("sport" in labels) - 2.0 * ("food" in labels)
    row = {"text": " ".join(words), "text_pair": draw.choice(["good film", "a bank"]), "labels": labels}
    return row | {"value": value, "size": float(len(words)), "weight": draw.choice([0.3, 1, 2.7])}


def write_topics(root: Path) -> Path:
    """A folder with 160 training rows and 40 of each other split."""
    draw = random.Random(7)
    for name, rows in (("train", 160), ("validation", 40), ("test", 40)):
        lines = [json.dumps(topic(draw)) + "\n" for _ in range(rows)]
        (root / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def recipe(root: Path, task: dict[str, Any], model: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        "name": "topics",
        "task": {"kind": "classification", **task},
        "data": {
            "root": str(root), "train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl",
            "lanes": 4, "tokens_per_batch": 96, "max_length": 32, "pad_multiple": 4,
        },
        "model": model or {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64},
        "optim": {"lr": 2e-3, "schedule": "constant"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1},
        "evaluation": {"bootstrap": 20, "splits": ["test"]},
        "export": {"onnx": False, "int8": False, "bf16": False},
    }  # fmt: skip
    if model is None:
        values["tokenizer"] = {"train": {"kind": "wordpiece", "vocab_size": 120}}
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return Recipe.parse(values)


def task(made: Any, data: dict[str, Any] | None = None) -> Any:
    """The task of a recipe, with a tokenizer of a few words and a survey of its training rows."""
    return make_task(made, task_of(made).tokenizer, data or {})
