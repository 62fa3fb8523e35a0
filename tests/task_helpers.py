"""Tasks with tiny models, made from their own toy rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from trainer.data.tokenization import train_tokenizer
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task, task_class

OWN = {"d_model": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0}
CAUSAL = {"kind": "language_modeling", "objective": "causal"}
LABELS = {"kind": "classification", "labels": ["negative", "positive"]}


def pretrained(architecture: str, **settings: Any) -> dict[str, Any]:
    """The `model` section of a tiny model with random weights and without dropout."""
    return {"kind": "pretrained", "architecture": architecture, "size": "tiny", "dropout": 0.0, **settings}


@cache
def _tokenizer(texts: tuple[str, ...], kind: str) -> Any:
    return train_tokenizer(texts, TokenizerTraining(kind=kind, vocab_size=300), 64)  # type: ignore[arg-type]


def toy_task(task: dict[str, Any], model: dict[str, Any], **data: Any) -> Any:
    """A task whose tokenizer is trained on its toy rows, of the kind that the model uses."""
    values = {"root": "x", "train": "x", "max_length": 32, "pad_multiple": 1, **data}
    training = {"train": {"kind": "wordpiece", "vocab_size": 300}}
    sections = {"task": task, "model": model, "data": values, "tokenizer": training, "loop": {"max_steps": 1}}
    made: Any = Recipe.parse({"name": "toy", **sections})
    kind = {"t5": "unigram", "gpt2": "byte_bpe", "roberta": "byte_bpe"}.get(model.get("architecture", ""), "wordpiece")
    kind = "bpe" if task["kind"] == "translation" else kind
    own = task_class(made)
    texts = [t for row in own.toy_rows for n, role in own.roles(made.task).items() for t in role.texts(row[n])]
    return make_task(made, _tokenizer(tuple(texts), kind))


def examples_of(task: Any, rows: Sequence[int] = (0, 1, 2, 3)) -> list[Any]:
    """Encoded toy rows, packed as in training."""
    roles = task.roles(task.recipe.task)
    encoded = task.encode([{role: task.toy_rows[i][role] for role in roles} for i in rows])
    return [example for example, _ in task.pack(task.corrupt(encoded, 1))]


def gradients(task: Any, model: Any, batch: Any) -> dict[str, Any]:
    """The loss and all gradients of a training forward."""
    model.zero_grad()
    loss, _ = task.loss_and_memory(model.train(), batch)
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}
