"""The convolution over one-hot tokens: its definition, padding, concatenated texts, and hidden words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import train
from review_helpers import recipe, written
from safetensors.numpy import load_file
from slow import slow_except
from task_helpers import LABELS, examples_of, toy_task

from trainer import embed
from trainer.errors import UsageError
from trainer.models.cnn import CNN
from trainer.models.configs import CNNConfig
from trainer.recipe_loading import Recipe, check_recipe

TOKENS, FILTERS = 30, 6


def model_of(width: int = 3, **settings: Any) -> CNN:
    torch.manual_seed(0)
    model = CNN(CNNConfig(filters=FILTERS, width=width, **settings), TOKENS)
    torch.nn.init.normal_(model.embedding.weight)
    torch.nn.init.normal_(model.bias)
    return model.eval()


def ids_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, TOKENS, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_it_is_a_convolution_of_one_hot_tokens(width: int) -> None:
    model, ids = model_of(width), ids_of(2, 9)
    one_hot = F.one_hot(ids, TOKENS).float().transpose(1, 2)
    weight = model.embedding.weight.detach().unflatten(1, (width, FILTERS)).permute(2, 0, 1)  # filters, tokens, places
    padded = F.pad(one_hot, (width // 2, width - 1 - width // 2))
    expected = F.conv1d(padded, weight, model.bias).transpose(1, 2) + model.type_embedding.weight[0]
    torch.testing.assert_close(model(ids), expected.relu(), atol=1e-5, rtol=1e-5)


def test_the_texts_of_a_pair_differ_by_type() -> None:
    model, ids = model_of(), ids_of(1, 6)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(model(ids, token_type_ids=types * 0), model(ids))
    changed = (model(ids, token_type_ids=types) - model(ids)).abs().amax(-1)
    assert changed[:, :3].max() == 0 < changed[:, 3:].min()


@pytest.mark.parametrize("width", [2, 3, 5])
def test_padding_on_either_side_changes_nothing(width: int) -> None:
    model, ids = model_of(width), ids_of(2, 7)
    other = torch.full((2, 4), 9)  # of the embedding of a word, not zeros
    for sides, place in (([ids, other], slice(0, 7)), ([other, ids], slice(4, 11))):
        mask = torch.cat([torch.ones_like(part) if part is ids else torch.zeros_like(part) for part in sides], 1)
        found = model(torch.cat(sides, 1), mask)[:, place]
        torch.testing.assert_close(found, model(ids), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_concatenated_texts_do_not_see_each_other(width: int) -> None:
    model = model_of(width)
    texts = [ids_of(1, length) for length in (5, 1, 7)]
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    together = model(torch.cat(texts, 1), position_ids=positions)
    torch.testing.assert_close(together, torch.cat([model(text) for text in texts], 1), atol=1e-6, rtol=1e-5)


def test_hidden_words_add_nothing_and_the_others_are_not_scaled() -> None:
    model, ids = model_of(1, word_dropout=0.25), ids_of(8, 256)
    torch.nn.init.zeros_(model.type_embedding.weight)
    torch.nn.init.constant_(model.bias, 10.0)  # no sum is negative
    shown = model(ids)
    trained = model.train()(ids)
    hidden = (trained == 10.0).all(-1)
    assert 0.2 < hidden.float().mean() < 0.3
    torch.testing.assert_close(trained[~hidden], shown[~hidden])


def test_a_text_is_found_by_its_phrases() -> None:
    """Order counts within a filter and not beyond it, as in n-grams."""
    task = toy_task(LABELS, {"kind": "cnn", "filters": 16})
    torch.manual_seed(0)
    model = task.build_model().eval()
    torch.nn.init.normal_(model.trunk.embedding.weight)
    first, second = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[11, 12, 13, 14]])
    gap = torch.zeros(1, 3, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]])
    both, turned = (model(torch.cat(parts, 1), mask) for parts in ((first, gap, second), (second, gap, first)))
    torch.testing.assert_close(both, turned)
    reversed_words = model(torch.cat((first.flip(1), gap, second), 1), mask)
    assert (reversed_words - both).abs().max() > 1e-3


def test_it_trains_on_every_kind_of_label() -> None:
    for more in ({}, {"mode": "multi"}, {"pair": True}):
        task = toy_task({**LABELS, **more}, {"kind": "cnn", "filters": 16})
        model = task.build_model().train()
        loss = task.loss(model, task.training_batch(examples_of(task)))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if "type" not in name}
        assert [name for name, g in gradients.items() if g is None or not g.any()] == []


def test_other_tasks_name_what_they_take() -> None:
    values = {
        "name": "x", "task": {"kind": "translation"}, "data": {"root": "x", "train": "x"}, "model": {"kind": "cnn"},
        "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 300}}, "loop": {"max_steps": 1},
    }  # fmt: skip
    with pytest.raises(UsageError, match="cnn cannot do task translation; allowed: transformer"):
        check_recipe(Recipe.parse(values))


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["ddp", "zero2", "zero3", "fsdp2"], "fsdp2"))
def test_every_engine_makes_the_steps_of_a_single_process(reviews: Path, tmp_path: Path, engine: str) -> None:
    """A trunk without layers, and a parameter that is in no layer. `embed` reads the run."""
    tokenizer = {"train": {"kind": "wordpiece", "vocab_size": 90}}
    made = recipe(
        reviews,
        {"kind": "cnn", "filters": 16},
        tokenizer=tokenizer,
        optim={"name": "sgd", "lr": 0.5},
        loop={"max_steps": 6},
    )
    for name in ("single", engine):
        ranks = 1 if name == "single" else 2
        train(written(tmp_path, made), tmp_path / name, world=ranks, engine=None if ranks == 1 else engine).check()
    a, b = (load_file(tmp_path / name / "checkpoints/step-00000006/model.safetensors") for name in ("single", engine))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    [record] = embed(tmp_path / engine, ["a good film"], pooling="tokens")
    assert record.vector.shape == (5, 16)
    assert record.vector.min() == 0 < record.vector.max()
