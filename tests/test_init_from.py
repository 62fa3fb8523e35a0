"""A finished run as the start of another: `model.init_from`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import tiny_recipe
from export_helpers import finished_run
from golden import runs
from review_helpers import BAD, GOOD, NAMES, OTHER, recipe, write_bert, written

from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.engine.trained_run import TrainedRun, build_model
from trainer.errors import UsageError
from trainer.models.stock import weights_of
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task

WORDS = [" ".join(GOOD + BAD + OTHER)] * 3


def first_run(folder: Path, values: dict[str, Any]) -> RunDir:
    """Return a finished run, untrained: its weights are those of another seed."""
    made = Recipe.parse({**values, "seed": 7})
    training = made.tokenizer_training
    tokenizer = train_tokenizer(WORDS, training, 32) if training else load_tokenizer(str(made.tokenizer_name))
    return finished_run(folder / "first", made, tokenizer, lambda *_: None)


def initialized_from(
    run: RunDir, values: dict[str, Any], **model: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights of a run, and those with which a recipe that starts from it begins."""
    section = {**values["model"], "init_from": str(run.path), **model}
    made = Recipe.parse({**values, "model": section, "tokenizer": {}})
    again = build_model(make_task(made, load_tokenizer(str(run.tokenizer)), {"train": {"labels": {"0": 1, "1": 1}}}))
    return weights_of(TrainedRun.open(run, Recipe).model), weights_of(again)


@pytest.mark.parametrize("name", list(runs.RECIPES))
def test_every_task_starts_with_all_weights_of_a_run(
    name: str, corpus: Path, reviews: Path, bert: Path, tmp_path: Path
) -> None:
    values = runs.recipe(name, runs.roots(tmp_path, corpus, reviews, bert))
    ours, again = initialized_from(first_run(tmp_path, values), values)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


def test_other_classes_get_a_new_head(reviews: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = recipe(reviews).model_dump(mode="json")
    run = first_run(tmp_path, values)
    values["task"] = {**values["task"], "labels": ["bad", "good", "neither"]}
    with caplog.at_level(logging.INFO, logger="rankzero"):
        ours, again = initialized_from(run, values)
    assert again["head.weight"].shape == (3, 32)
    assert all(torch.equal(ours[key], again[key]) for key in ours if key.startswith("trunk."))
    assert (
        f"the head is new: its classes are {NAMES}, those of this recipe are ['bad', 'good', 'neither']" in caplog.text
    )


@pytest.mark.parametrize("pooling", ["mean", "auto"])
def test_a_trunk_moves_between_kinds_of_heads(pooling: str, reviews: Path, bert: Path, tmp_path: Path) -> None:
    """The weights have other prefixes: `bert.` with the library's head, `trunk.` with pooling."""
    values = recipe(reviews, {"kind": "pretrained", "name": str(bert), "pooling": pooling}).model_dump(mode="json")
    run = first_run(tmp_path, values)
    ours, again = initialized_from(run, values, pooling="auto" if pooling == "mean" else "mean")
    theirs = {name.partition(".")[2]: tensor for name, tensor in again.items()}
    shared = [name for name in ours if name.partition(".")[2] in theirs and ".encoder." in name]
    assert len(shared) == 32
    assert all(torch.equal(ours[name], theirs[name.partition(".")[2]]) for name in shared)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm", "post", r"model\.norm is pre there and post in this recipe"),
        ("encoder_layers", 2, r"model\.encoder_layers is 1 there and 2"),
        ("d_model", 64, r"is \[\d+, 32\] there and \[\d+, 64\] in this recipe's model"),
    ],
)
def test_another_translator_is_refused(key: str, value: Any, message: str, corpus: Path, tmp_path: Path) -> None:
    values = tiny_recipe(corpus)
    run = first_run(tmp_path, values)
    with pytest.raises(UsageError, match=message):
        initialized_from(run, values, **{key: value})


@pytest.mark.ranks
def test_another_vocabulary_ends_with_both_sizes(reviews: Path, tmp_path: Path) -> None:
    values = recipe(reviews, write_model(tmp_path)).model_dump(mode="json")
    run = first_run(tmp_path, values)
    other = train_tokenizer(WORDS, TokenizerTraining(kind="wordpiece", vocab_size=60), 32)
    other.save_pretrained(tmp_path / "other")
    values["model"] = {**values["model"], "init_from": str(run.path)}
    values["tokenizer"] = {"pretrained": str(tmp_path / "other")}
    ended = processes.train(written(tmp_path, Recipe.parse(values)), tmp_path / "run").check(2)
    sizes = len(load_tokenizer(str(run.tokenizer))), len(other)
    assert f"its vocabulary has {sizes[0]} tokens and that of this recipe {sizes[1]}" in ended.err[0]


def write_model(folder: Path) -> dict[str, Any]:
    (folder / "bert").mkdir()
    return {"kind": "pretrained", "name": str(write_bert(folder / "bert"))}


@pytest.mark.ranks
def test_a_translator_trains_on(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    """From the command line: the first step begins with the loss that the first run ended with."""
    short = ("loop.max_steps=6", "evaluation.splits=[]")
    processes.train(recipe, tmp_path / "first", *short).check()
    begins = (f"model.init_from={tmp_path / 'first'}", "tokenizer={}", "loop.max_steps=1", "evaluation.splits=[]")
    processes.train(recipe, tmp_path / "second", *begins).check()
    losses = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])["loss"]
        for name in ("first", "second")
    ]
    assert losses[1] < losses[0] - 0.05
