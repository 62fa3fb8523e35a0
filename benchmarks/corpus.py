"""Multi30k for all contestants: the recipe, its tokenizer, and the training rows as that tokenizer's ids."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.engine.corpus import Corpus
from trainer.recipe import Recipe
from trainer.recipe_loading import load_recipe
from trainer.task.registry import make_task

RECIPE = "multi30k"


@dataclass(frozen=True)
class Prepared:
    """The recipe, the overrides that give it in another process, and the folder of the tokenizer trained for it."""

    recipe: Recipe
    overrides: list[str]
    tokenizer: Path

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


def prepare(root: Path, overrides: list[str], tokenizer: Path) -> Prepared:
    """Trains the recipe's tokenizer on the corpus below `root` into the folder `tokenizer`."""
    overrides = [f"data.root={json.dumps(str(root))}", *overrides]
    recipe = load_recipe(RECIPE, overrides)
    settings = recipe.tokenizer.train
    assert settings is not None, "the recipe trains its tokenizer"
    task = make_task(recipe, None)  # type: ignore[arg-type]
    texts = TrainingTexts(Corpus(recipe, task).train, recipe.data, task.roles(recipe.task), settings.sample_rows)
    train_tokenizer(texts, settings, recipe.data.max_length).save_pretrained(tokenizer)
    overrides = [*overrides, f"tokenizer={{pretrained: {json.dumps(str(tokenizer))}}}"]
    return Prepared(load_recipe(RECIPE, overrides), overrides, tokenizer)


def write_encoded(prepared: Prepared, out: Path) -> None:
    """Every training row as {"src": ids, "trg": ids}, both ending with [EOS] and without [BOS]."""
    task = make_task(prepared.recipe, load_tokenizer(str(prepared.tokenizer)))
    rows = [texts for _, texts in Corpus(prepared.recipe, task).texts("train")]
    eos = task.tokenizer.eos_token_id
    with out.open("w", encoding="utf-8") as lines:
        for example in task.encode(rows):
            lines.write(json.dumps({"src": example["src"], "trg": [*example["trg"], eos]}) + "\n")
