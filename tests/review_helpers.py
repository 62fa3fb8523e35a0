"""A tiny corpus of reviews, a tiny pretrained BERT, and recipes on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import processes
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

NAMES = ["negative", "positive"]
GOOD, BAD = ["good", "great", "fine", "superb"], ["bad", "awful", "dull", "poor"]
OTHER = ["the", "a", "film", "plot", "story", "was", "with", "and", "very", "some", "scenes", "acting", "it", "this"]


def review(draw: random.Random) -> dict[str, Any]:
    label = draw.randrange(2)
    words = draw.choices(OTHER, k=draw.randint(3, 20)) + draw.choices((BAD, GOOD)[label], k=2)
    draw.shuffle(words)
    return {"text": " ".join(words), "label": label}


def write_reviews(root: Path) -> Path:
    """A folder with 160 training rows, sorted by label, and 40 test rows."""
    draw = random.Random(3)
    for name, rows in (("train", 160), ("test", 40)):
        made = sorted((review(draw) for _ in range(rows)), key=lambda row: row["label"])
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return root


def write_bert(folder: Path) -> Path:
    """A tiny pretrained BERT: a folder as the Hub has them."""
    tokenizer = train_tokenizer([" ".join(GOOD + BAD + OTHER)], TokenizerTraining(kind="wordpiece", vocab_size=90), 40)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).base_model.save_pretrained(folder)
    return folder


def recipe(root: Path, model: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        "name": "reviews",
        "task": {"kind": "classification", "labels": dict(enumerate(NAMES))},
        "data": {
            "root": str(root), "train": "train.jsonl", "validation": 0.15, "test": "test.jsonl", "lanes": 4,
            "tokens_per_batch": 96, "max_length": 32, "pad_multiple": 4,
        },
        "model": model or {"kind": "encoder", "d_model": 32, "layers": 2, "heads": 2, "feed_forward": 64},
        "optim": {"lr": 2e-3, "schedule": "constant"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1},
        "evaluation": {"bootstrap": 20, "splits": ["test"]},
        "export": {"model": False, "onnx": False, "int8": False},
    }  # fmt: skip
    if model is None:
        values["tokenizer"] = {"train": {"kind": "wordpiece", "vocab_size": 90}}
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return Recipe.parse(values)


def task_of(made: Any) -> Any:
    config = made.tokenizer.train
    words = [" ".join(GOOD + BAD + OTHER)]
    tokenizer = train_tokenizer(words, config, 32) if config else load_tokenizer(made.tokenizer_name)
    return make_task(made, tokenizer, {"train": {"labels": {"0": 60, "1": 20}}})


def written(tmp_path: Path, made: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")), encoding="utf-8")
    return path


def train(tmp_path: Path, made: Any, name: str, ranks: int = 1, hook: Any = None) -> Path:
    run = tmp_path / name
    processes.train(written(tmp_path, made), run, world=ranks, hook=hook).check()
    return run


def metrics(run: Path, split: str = "test") -> dict[str, Any]:
    return json.loads((run / "evaluation" / split / "metrics.json").read_text(encoding="utf-8"))
