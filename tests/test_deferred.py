"""A model that is built without memory gets the numbers of one that is built as usual."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import runs
from review_helpers import recipe, task_of
from test_adapters import KINDS
from test_init_from import first_run
from torch import Tensor, nn

from trainer.data.tokenization import load_tokenizer
from trainer.engine.trained_run import build_model
from trainer.models.deferred import deferred
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

CPU = torch.device("cpu")


def check(build: Callable[[], nn.Module]) -> None:
    """Compare parameters, buffers, what is trained, what is tied, and the generator after the build."""
    plain = build()
    after = torch.rand(1)
    lazy = deferred(build, CPU)
    assert lazy is not None, "it is recorded"
    filled: dict[str, Tensor] = {}
    lazy.fill(lambda name, weight: filled.update({name: weight.clone()}))
    assert torch.equal(torch.rand(1), after)
    expected = dict(plain.named_parameters())
    assert {name: p.requires_grad for name, p in lazy.model.named_parameters()} == {
        name: p.requires_grad for name, p in expected.items()
    }
    assert filled.keys() == expected.keys()
    assert [name for name, p in expected.items() if not torch.equal(p, filled[name])] == []
    buffers = dict(lazy.model.named_buffers())
    assert buffers.keys() == dict(plain.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in plain.named_buffers())


def task_from(values: dict[str, Any], tokenizer: str) -> Any:
    return make_task(Recipe.parse(values), load_tokenizer(tokenizer), {"train": {"labels": {"0": 1, "1": 1}}})


@pytest.mark.parametrize("name", list(runs.RECIPES))
def test_every_task_and_init_from(name: str, corpus: Path, reviews: Path, bert: Path, tmp_path: Path) -> None:
    values = runs.recipe(name, runs.roots(tmp_path, corpus, reviews, bert))
    run = first_run(tmp_path, values)
    for model in (values["model"], {**values["model"], "init_from": str(run.path)}):
        task = task_from({**values, "model": model, "tokenizer": {}}, str(run.tokenizer))
        check(functools.partial(build_model, task, check=False))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters(kind: str, bert: Path) -> None:
    model = {"kind": "pretrained", "name": str(bert), "adapter": KINDS[kind]}
    check(functools.partial(build_model, task_of(recipe(Path(), model))))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "modernbert", "t5"])
def test_families_from_random_weights(family: str) -> None:
    model = {"kind": "pretrained", "architecture": family, "size": "tiny"}
    tokenizer = {"train": {"kind": "wordpiece", "vocab_size": 90}}
    check(functools.partial(build_model, task_of(recipe(Path(), model, tokenizer=tokenizer))))


def test_a_model_that_looks_at_its_weights_is_not_recorded() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        return layer if bool(layer.weight.sum() > 0) else nn.Linear(3, 3)

    assert deferred(build, CPU) is None


def test_data_that_was_replaced_behind_the_record_is_not_recorded() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        layer.weight.data = torch.ones(2, 2)
        return layer

    assert deferred(build, CPU) is None


@pytest.mark.slow
def test_few_tensors_have_memory_at_a_time() -> None:
    size = 1 << 16
    layers, width = 20, 256

    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        for p in model.parameters():  # all are drawn twice, as by the constructors of most models
            nn.init.normal_(p)
        return model

    torch.manual_seed(3)
    before = allocated()
    lazy = deferred(build, CPU)
    assert lazy is not None
    assert allocated() - before <= 1.5 * size * 4, "placeholders share the memory of the largest one"
    peaks: list[int] = []
    lazy.fill(lambda name, weight: peaks.append(allocated()))
    assert len(peaks) == layers
    assert max(peaks) - before <= 3 * size * 4


def allocated() -> int:
    """Return the bytes of all tensors of this process."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu":
            storages[thing.untyped_storage()._cdata] = thing.untyped_storage().nbytes()
    return sum(storages.values())
