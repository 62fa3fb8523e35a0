"""The recipe of a benchmark (multi30k if it names no other) and the tokenizer that is trained for it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources import open_split
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.recipe import Recipe
from trainer.recipe_loading import load_recipe
from trainer.task.registry import make_task, roles_of

RECIPE = "multi30k"


@dataclass(frozen=True)
class Prepared:
    """The recipe, the overrides that give it in another process, and the folder of the tokenizer trained for it."""

    recipe: Recipe
    overrides: list[str]
    tokenizer: Path

    def task(self) -> Any:
        return make_task(self.recipe, load_tokenizer(str(self.recipe.tokenizer_name)))

    def shape(self) -> dict[str, Any]:
        """What another code base needs to build a model of the same shape."""
        names = ("d_model", "heads", "encoder_layers", "decoder_layers", "feed_forward", "dropout")
        sizes = {name: getattr(self.recipe.model, name) for name in names}
        return {
            **sizes,
            "vocab_size": len(load_tokenizer(str(self.tokenizer))),
            "max_length": self.recipe.data.max_length,
        }


def data_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --data, whose value becomes the path of the training file."""

    def training_file(folder: str) -> Path:
        file = Path(folder) / "multi30k" / "train.jsonl"
        if not file.exists():
            raise argparse.ArgumentTypeError(f"{file} is missing: give the folder that holds multi30k/train.jsonl")
        return file

    given = os.environ.get("RANKZERO_DATA")
    text = "folder that holds multi30k/train.jsonl; the environment's RANKZERO_DATA by default"
    parser.add_argument("--data", type=training_file, default=given, required=given is None, help=text)


def prepare(root: Path, overrides: list[str], tokenizer: Path, name: str = RECIPE) -> Prepared:
    """Train the recipe's tokenizer, if it trains one, on the corpus below `root` into the folder `tokenizer`."""
    overrides = [f"data.root={json.dumps(str(root))}", "optim.r_drop=0", *overrides]  # others run each row once
    recipe = load_recipe(name, overrides)
    settings = recipe.tokenizer_training
    if settings is None:  # that of the pretrained model
        return Prepared(recipe, overrides, tokenizer)
    roles = roles_of(recipe)
    source = open_split(recipe.data, "train", roles)
    assert source is not None
    texts = TrainingTexts(source, recipe.data, roles, settings.sample_rows)
    train_tokenizer(texts, settings, recipe.data.max_length).save_pretrained(tokenizer)
    overrides = [*overrides, f"tokenizer={{pretrained: {json.dumps(str(tokenizer))}}}"]
    return Prepared(load_recipe(name, overrides), overrides, tokenizer)
