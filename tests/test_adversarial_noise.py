"""Adversarial noise is added to tokens only, also in a batch without attention_mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import build_model
from trainer.models.classifiers import reading_embedding
from trainer.models.families import family_of
from trainer.optim.adversarial import Perturbation
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

SHORT, LONG = "a dog", "two men are sitting on a bench in the park and are reading a book"
OWN = {"kind": "transformer", "d_model": 32, "heads": 2, "feed_forward": 32, "dropout": 0.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "translation": ({"kind": "translation"}, OWN),
    "text_to_text": ({"kind": "text_to_text"}, {"architecture": "t5"}),
    "causal": ({"kind": "language_modeling", "objective": "causal", "packing": False}, {"architecture": "gpt2"}),
    "classification": ({"kind": "classification", "labels": ["a", "b"]}, {"architecture": "bert"}),
    "left": ({"kind": "classification", "labels": ["a", "b"]}, {"architecture": "xlnet"}),
}


@pytest.mark.parametrize("name", CASES)
def test_noise_is_added_to_tokens_only(name: str) -> None:
    task, model = CASES[name]
    if model is not OWN:
        model = {"kind": "pretrained", "size": "tiny", "dropout": 0.0, **model}
    made = Recipe.parse(
        {
            "name": "x",
            "task": task,
            "data": {
                "root": "embedded://translation" if task["kind"] in ("translation", "text_to_text") else
                "embedded://reviews",
                "train": "train?rows=10", "max_length": 64, "tokens_per_batch": 512, "pad_multiple": 1,
            },
            "model": model,
            "tokenizer": {"train": {"kind": "unigram", "vocab_size": 60}},
            "optim": {"adversarial": {"kind": "noise", "epsilon": 1.0}},
            "loop": {"max_steps": 1},
        }
    )  # fmt: skip
    settings: Any = made.tokenizer_training
    ready = make_task(made, train_tokenizer([SHORT, LONG] * 9, settings, 64))
    built: Any = build_model(ready)
    rows = family_of(getattr(getattr(built, "trunk", built), "config", None)).rows_dimension
    twin = Perturbation(reading_embedding(built), made.optim.adversarial, rows=rows)
    short, long = ready.encode([{"src": t, "trg": t, "text": t, "label": "a"} for t in (SHORT, LONG)])
    tokens = len(next(iter(short.values())))
    for examples in ([short], [short, long]):
        delta, wide = noise_of_first(twin, ready, built, examples)
        assert wide == (len(examples) == 2)
        ours = delta[-tokens:] if name == "left" else delta[:tokens]
        assert float(ours.norm()) == pytest.approx(1.0, abs=1e-4)
        assert float(delta.norm()) == pytest.approx(1.0, abs=1e-4)


def noise_of_first(twin: Perturbation, task: Any, model: Any, examples: list[Any]) -> tuple[Tensor, bool]:
    """Noise of the first row (T, M), and whether that row is padded."""
    batch = task.collate(examples)
    torch.manual_seed(0)
    with twin.clean():
        task.loss(model, batch).backward()
    torch.manual_seed(1)
    delta = twin.direction(batch.get("attention_mask"))
    inputs = batch[task.inputs[0]]
    if delta.shape[0] != inputs.shape[0]:
        delta = delta.transpose(0, 1)
    return delta[0], inputs.shape[1] > len(next(iter(examples[0].values())))
