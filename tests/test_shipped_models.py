"""model/ of every shipped recipe in a fresh process with stock transformers, on a shrunken version of the recipe.

The recipes are those of the folder, so a new one is tested without an entry here. Kept are its task, columns, cleaning,
pooling, adapter and architecture. Widths, vocabulary and rows are small, and the weights are random.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from export_helpers import finished_run, spread
from review_helpers import BAD, GOOD, OTHER
from slow import slow_except

from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.export.stage import export_run
from trainer.models.adapters import merge
from trainer.recipe import read_yaml
from trainer.recipe_loading import SHIPPED, Recipe

RECIPES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
WITHOUT_STOCK_CLASS = {
    "xl-imdb": "TransformerXL is a model of rankzero",
    "imdb-mlm": "positions=alibi",
    "imdb-scratch": "a convolution over one-hot tokens",
}
ONLY = ["export.model=true", "export.onnx=false", "export.int8=false", "export.bf16=false", "export.safetensors=false"]
WIDTHS = {"d_model": 32, "heads": 2, "feed_forward": 64}
LAYERS = ("layers", "encoder_layers", "decoder_layers")
VOCABULARY = {"bpe": 200, "byte_bpe": 300, "unigram": 100, "wordpiece": 90}
HUB = {
    "openai-community/gpt2": ("gpt2", "byte_bpe"),
    "google-t5/t5-small": ("t5", "unigram"),
    "microsoft/mpnet-base": ("mpnet", "wordpiece"),
}
WORDS = [*GOOD, *BAD, *OTHER]
LENGTH, ROWS = 32, 24


def shrunken(name: str, root: Path, bert: Path) -> dict[str, Any]:
    """Return the values of a recipe with a small model, and rows that are written into a folder."""
    values = read_yaml(SHIPPED / f"{name}.yaml")
    values["model"], tokenizer = _model(values["model"], values.get("tokenizer"), bert)
    values.pop("tokenizer", None)
    if tokenizer:
        values["tokenizer"] = tokenizer
    data = values["data"]
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    tokens = data.get("tokens_per_batch", 320) and 320
    values["data"] = {**data, "root": str(root), **files, "max_length": LENGTH, "tokens_per_batch": tokens}
    values["evaluation"] = {**values["evaluation"], "max_length_factor": 1.0, "beam_size": 2, "splits": ["test"]}
    values["export"] = {"gates": {"rows": 8}, "bench": 0}
    for file in files.values():
        rows = [_row(values["task"], data.get("columns", {}), n) for n in range(ROWS)]
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return values


def _model(model: dict[str, Any], tokenizer: dict[str, Any] | None, bert: Path) -> tuple[dict[str, Any], Any]:
    kind = (tokenizer or {}).get("train", {}).get("kind", "wordpiece")
    name = model.get("name", "")
    if name.startswith("pkg://"):
        return {**model, "name": str(bert)}, None
    if model["kind"] == "pretrained":
        architecture, kind = HUB.get(name, (model.get("architecture"), kind))
        kept = {key: value for key, value in model.items() if key not in ("name", "size", "config")}
        config = {"config": model["config"]} if name and "config" in model else {}
        model = {**kept, "architecture": architecture, "size": "tiny", **config}
    else:
        widths = {"filters": 32} if model["kind"] == "cnn" else WIDTHS
        model = {**model, **widths, **dict.fromkeys((key for key in LAYERS if key in model), 1)}
    return model, {"train": {**(tokenizer or {}).get("train", {}), "kind": kind, "vocab_size": VOCABULARY[kind]}}


def _row(task: dict[str, Any], columns: dict[str, str], number: int) -> dict[str, Any]:
    """Return a row with values for all roles that a task may have, by column."""
    draw = random.Random(number)
    labels = list(task.get("labels", ["x"]))
    words = draw.choices(WORDS, k=draw.randint(2, 9))
    tags = draw.choices(["O", *(f"B-{label}" for label in labels)], k=len(words))
    texts = {role: " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for role in ("text", "text_pair", "src", "trg")}
    targets = {"label": labels[number % len(labels)], "labels": labels[: number % 3], "value": number / 8}
    roles = {**texts, **targets, "tokens": words, "tags": tags}
    return {columns.get(role, role): value for role, value in roles.items()}


def spread_and_merged(task: Any, model: Any) -> None:
    """Change the weights, those of an adapter too, and merge it as the end of a training does."""
    spread(task, model)
    merge(model)


@pytest.mark.parametrize("name", slow_except(RECIPES, "sick-entailment"))
def test_stock_transformers_loads_the_model_of_a_shipped_recipe(name: str, tmp_path: Path, bert: Path) -> None:
    recipe = Recipe.parse(shrunken(name, tmp_path, bert))
    training = recipe.tokenizer_training
    lines = [" ".join(WORDS)] * 3
    tokenizer = train_tokenizer(lines, training, LENGTH) if training else load_tokenizer(str(recipe.tokenizer_name))
    run = finished_run(tmp_path / "run", recipe, tokenizer, spread_and_merged)
    assert export_run(run, ONLY) == []
    gate = json.loads((run.model / "gate.json").read_text(encoding="utf-8"))
    assert gate["passed"], gate["checks"]
    if name in WITHOUT_STOCK_CLASS:
        assert not gate["applicable"] and WITHOUT_STOCK_CLASS[name] in gate["reason"]
        return
    assert gate["applicable"] and gate["checks"]["loads"]["seconds"] > 0, "in a process of its own"
    assert gate["checks"]["inputs"]["passed"] and gate["checks"]["outputs"]["rows"] > 0
    assert gate["checks"]["outputs"]["largest_difference"] <= 1e-5


def test_a_recipe_without_a_stock_class_is_one_that_is_shipped() -> None:
    assert set(WITHOUT_STOCK_CLASS) <= set(RECIPES)
