"""A tiny corpus of sentences with names, and recipes on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trainer.recipe_loading import Recipe

PEOPLE = ["Ada Lovelace", "Grace Hopper", "Alan", "Edith Clarke", "Karen"]
PLACES = ["London", "New York", "Paris", "Rio de Janeiro"]
OTHER = ["the", "old", "train", "left", "for", "and", "met", "a", "friend", "with", "in", "summer", "said", "today"]


def sentence(draw: random.Random, longest: int = 4) -> dict[str, Any]:
    """A row of tokens with BIO tags: each person follows "met", and each place follows "in"."""
    tokens: list[str] = []
    tags: list[str] = []
    for _ in range(draw.randint(1, longest)):
        filler = draw.choices(OTHER[:6], k=draw.randint(1, 4))
        label, word, name = draw.choice([("PER", "met", draw.choice(PEOPLE)), ("LOC", "in", draw.choice(PLACES))])
        words = name.split()
        tokens += [*filler, word, *words]
        tags += ["O"] * (len(filler) + 1) + [f"B-{label}", *[f"I-{label}"] * (len(words) - 1)]
    return {"tokens": [*tokens, "."], "ner_tags": [*tags, "O"]}


def write_sentences(root: Path) -> Path:
    """A folder with 160 training rows, 30 validation rows and 40 test rows; some are longer than 32 pieces."""
    draw = random.Random(3)
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", 160), ("validation", 30), ("test", 40)):
        lines = [sentence(draw, 12 if i % 10 == 0 else 4) for i in range(rows)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def recipe(root: Path, **sections: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        "name": "entities",
        "task": {"kind": "token_classification", "labels": ["PER", "LOC"]},
        "data": {
            "root": str(root), "train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl",
            "columns": {"tags": "ner_tags"}, "lanes": 2, "tokens_per_batch": 128, "max_length": 32, "pad_multiple": 4,
        },
        "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 120}},
        "model": {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64},
        "optim": {"lr": 5e-3, "schedule": "constant"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1, "early_stopping": {"metric": "f1"}},
        "evaluation": {"bootstrap": 20, "splits": ["test"]},
        "export": {"onnx": False, "int8": False, "bench": 0},
    }  # fmt: skip
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if name != "model" else changes
    return Recipe.parse(values)
