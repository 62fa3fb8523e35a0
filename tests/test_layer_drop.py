"""LayerDrop is off: a layer that is dropped at random would be frozen, or would differ between ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.data.tokenization import train_tokenizer
from trainer.engine.objective import Objective, freeze_unused
from trainer.engine.trained_run import build_model
from trainer.errors import UsageError
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

TEXTS = ["a dog runs over the lawn", "two men are sitting", "the film is good"] * 10


def task_of(kind: str, model: dict[str, Any]) -> Any:
    task = {"kind": kind} | ({"labels": ["neg", "pos"]} if kind == "classification" else {})
    task |= {"objective": "causal", "packing": False} if kind == "language_modeling" else {}
    root = "embedded://translation" if kind == "text_to_text" else "embedded://reviews"
    made = Recipe.parse(
        {
            "name": "x",
            "task": task,
            "data": {"root": root, "train": "train?rows=10", "max_length": 32, "tokens_per_batch": 256},
            "model": {"kind": "pretrained", **model},
            "tokenizer": {"train": {"kind": "unigram", "vocab_size": 60}},
            "loop": {"max_steps": 1},
        }
    )
    settings: Any = made.tokenizer_training
    return make_task(made, train_tokenizer(TEXTS, settings, 32))


CASES = [
    ("text_to_text", "bart", "encoder_layerdrop"),
    ("text_to_text", "bart", "decoder_layerdrop"),
    ("text_to_text", "m2m_100", "encoder_layerdrop"),
    ("language_modeling", "opt", "layerdrop"),
    ("language_modeling", "xglm", "layerdrop"),
    ("classification", "mbart", "decoder_layerdrop"),
    ("classification", "flaubert", "layerdrop"),
]


@pytest.mark.parametrize(("kind", "family", "key"), CASES)
def test_a_recipe_that_asks_for_layer_drop_is_refused(kind: str, family: str, key: str) -> None:
    task = task_of(kind, {"architecture": family, "size": "tiny", "config": {key: 0.5}})
    with pytest.raises(UsageError) as caught:
        build_model(task)
    assert str(caught.value) == (
        f"model.config.{key}=0.5: LayerDrop would drop other layers on each rank; allowed is 0. Leave the key out"
    )
    assert not drops(build_model(task_of(kind, {"architecture": family, "size": "tiny", "config": {key: 0.0}})))


def drops(model: nn.Module) -> list[float]:
    """Nonzero probabilities of the modules that leave out layers."""
    return [p for module in model.modules() if (p := getattr(module, "layerdrop", 0))]


@pytest.mark.parametrize(("kind", "family"), [("text_to_text", "m2m_100"), ("text_to_text", "nllb-moe")])
def test_the_default_of_a_family_is_set_to_zero(kind: str, family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rankzero"):
        model = build_model(task_of(kind, {"architecture": family, "size": "tiny"}))
    assert not drops(model)
    assert f"LayerDrop of {family!r} is set to 0 (it was encoder_layerdrop 0.05, decoder_layerdrop 0.05)" in caplog.text


def test_that_of_pretrained_weights_is_set_to_zero_and_no_layer_is_frozen(tmp_path: Path) -> None:
    from transformers import BartConfig, BartModel

    task = task_of("text_to_text", {"architecture": "bart", "size": "tiny"})
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    config = BartConfig(
        vocab_size=len(task.tokenizer), d_model=16, encoder_layerdrop=0.9, decoder_layerdrop=0.9,
        max_position_embeddings=64, **sizes,
    )  # fmt: skip
    BartModel(config).save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    task = task_of("classification", {"name": str(tmp_path), "pooling": "mean"})
    for seed in range(3):
        model = build_model(make_task(task.recipe, task.tokenizer))
        assert not drops(model)
        torch.manual_seed(seed)
        assert freeze_unused(Objective(task, model)) == []
