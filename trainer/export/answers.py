"""What trained weights and an artifact say of the same rows: logits, losses, continuations.

Logits are those along a row's own text (teacher forcing), so that both sides are asked for the same. A document of a
language model is cut into pieces as its evaluation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from trainer.export.programs.classifier import Classifier
from trainer.export.programs.common import Artifact
from trainer.export.programs.generator import Generator
from trainer.task.base import PROMPT, Example, Record, Task

if TYPE_CHECKING:
    from trainer.recipe.sections import GenerationConfig

Array = np.ndarray[Any, Any]
T = TypeVar("T")
SINGLE = 4  # tokens of a text that are given to a generator one by one, as a search does
TOGETHER = 16  # texts that are gone on with at once
NUMBERS = 2**27  # logits that are held at once


# -- logits ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def torch_logits(task: Task, model: nn.Module, examples: Sequence[Example]) -> list[Array]:
    """Of each example in this batch (classes,), or (T, V) along its target, or (N, V) of its masked tokens."""
    examples = task.corrupt([first_piece(task, example) for example in examples])
    found = task.logits(model, task.collate(examples)).float().numpy()
    if task.artifact == "masked":
        ends = np.cumsum([len(example["places"]) for example in examples])
        return np.split(found, ends[:-1])
    return [
        logits[: len(_labels(task, e))] if logits.ndim == 2 else logits
        for logits, e in zip(found, examples, strict=True)
    ]


def artifact_logits(task: Task, artifact: Artifact, examples: Sequence[Example]) -> list[Array]:
    """The same of the artifact; what it writes token by token it is given token by token."""
    if isinstance(artifact, Classifier):
        return list(artifact.logits([as_artifact(task, example) for example in examples]))
    if isinstance(artifact, Generator):
        return _forced(artifact, [first_piece(task, example)["input_ids"] for example in examples], SINGLE)
    made: Any = artifact
    fixed, cache = made.start([as_artifact(task, example)[0] for example in examples])
    labels = [_labels(task, example) for example in examples]
    inputs = made.pad([[made.settings["start_id"], *ids[:-1]] for ids in labels], 0)
    parents, found = np.arange(len(examples))[:, None], []
    for step in range(max(map(len, labels))):
        feeds = {**fixed, "count": np.array([1])}
        (logits,), cache = made.step(["logits"], inputs[:, step : step + 1], parents, feeds, cache)
        found.append(logits[:, 0])
    return [row[: len(ids)] for row, ids in zip(np.stack(found, 1), labels, strict=True)]


def chosen_gap(artifact: Generator, texts: Sequence[Sequence[int]]) -> float:
    """How far the token that a search takes behind each text, and its log probability, are from the logits' best."""
    tokens, mask, cache = artifact.start(texts)
    (logits, log_probs, ids), _ = artifact.step(["logits", "log_probs", "ids"], tokens, mask, cache, last=True)
    logits = logits[:, -1].astype(np.float64)
    best = logits.max(-1)
    sums = np.log(np.exp(logits - best[:, None]).sum(-1)) + best
    taken = logits[np.arange(len(texts)), ids[:, -1, 0]]
    return float(max(np.abs(taken - best).max(), np.abs(log_probs[:, -1, 0] - (best - sums)).max()))


def _forced(artifact: Generator, texts: Sequence[Sequence[int]], single: int) -> list[Array]:
    """Logits (T, V) along each text: its first half at once, then so many tokens one by one, then the rest at once."""
    tokens, mask, cache = artifact.start(texts)
    width = tokens.shape[1]
    half = max(1, width // 2)
    found, begin = [], 0
    for end in dict.fromkeys([*range(half, min(half + single + 1, width)), width]):
        (logits,), cache = artifact.step(["logits"], tokens[:, begin:end], mask[:, :end], cache, last=False)
        found.append(logits)
        begin = end
    return [row[width - len(text) :] for row, text in zip(np.concatenate(found, 1), texts, strict=True)]


def as_artifact(task: Task, example: Example) -> tuple[list[int], ...]:
    """An example of the task as run.py encodes it."""
    if task.artifact == "translation":
        return (example["src"],)
    if task.artifact in ("generation", "text_to_text"):
        return (example["input_ids"],)
    return example["input_ids"], example.get("token_type_ids", [0] * len(example["input_ids"]))


def first_piece(task: Any, example: Example) -> Example:
    """What of a document of a language model is compared logit by logit; other rows are whole."""
    return next(task.pieces(example)) if task.artifact == "generation" else example


def numbers(task: Task, example: Example) -> int:
    """How many logits a row has: with the vocabulary of a pretrained language model there are many."""
    if task.artifact not in ("generation", "text_to_text"):
        return 1
    return len(task.tokenizer) * task.length(first_piece(task, example))


def fitting(rows: Sequence[T], count: Callable[[T], int]) -> int:
    """How many of the first of these rows, 1 at least, have no more than NUMBERS logits, all as wide as the widest."""
    found = len(rows)
    while found > 1 and found * max(map(count, rows[:found])) > NUMBERS:
        found -= 1
    return found


def _labels(task: Any, example: Example) -> list[int]:
    """Inputs and outputs of a decoder."""
    return example["labels"] if "labels" in example else task.closed(example)


# -- language models: losses and continuations -------------------------------------------------------------------------


@torch.no_grad()
def torch_answers(task: Task, model: nn.Module, examples: Sequence[Example]) -> list[Record]:
    """Of each row what `rankzero predict` says of it; of a language model's the loss (nats, summed) and its tokens."""
    batch = task.collate(task.corrupt(examples))
    if task.artifact not in ("generation", "masked"):
        return [task.answer(record) for record in task.predict(model, batch)]
    losses, counts, _ = task.assess(model, batch, predict=False)
    return [{"loss": loss, "tokens": n} for loss, n in zip(losses.tolist(), counts.tolist(), strict=True)]


def artifact_losses(task: Any, artifact: Generator, examples: Sequence[Example], tell: Callable[[int], None]) -> Array:
    """The loss of each document, as its evaluation sums it; `tell` is given how many pieces are done."""
    cut = [(number, piece) for number, example in enumerate(examples) for piece in task.pieces(example)]
    losses, done = np.zeros(len(examples)), 0
    for batch in _parts(artifact, task, [piece for _, piece in cut]):
        found = _forced(artifact, [cut[i][1]["input_ids"] for i in batch], SINGLE)  # through the cache, as an answer is
        for i, logits in zip(batch, found, strict=True):
            number, piece = cut[i]
            largest = logits.max(-1, keepdims=True)
            sums = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
            losses[number] += float((sums - logits[np.arange(len(logits)), piece["labels"]]).astype(np.float64).sum())
        tell(done := done + len(batch))
    return losses


def _parts(artifact: Generator, task: Any, pieces: Sequence[Example]) -> Iterator[list[int]]:
    """Batches of pieces, by their places, as run.py makes them; smaller ones where there are too many logits."""
    for batch in artifact.batches([len(piece["labels"]) for piece in pieces], artifact.settings["one_by_one"]):
        while batch:
            size = fitting(batch, lambda i: len(task.tokenizer) * len(pieces[i]["labels"]))
            yield batch[:size]
            batch = batch[size:]


def greedy(task: Task) -> GenerationConfig:
    """How an artifact goes on with a text: as the recipe says, but greedily, and after one token at least."""
    settings, longest = task.recipe.evaluation.generation, task.recipe.data.max_length
    new_tokens = max(1, min(settings.new_tokens, longest - 1))
    return settings.greedy(new_tokens=new_tokens)


def prompt(task: Task, example: Example) -> list[int]:
    """The beginning of a document: half of it, and no more than an artifact goes on with."""
    most = min(PROMPT, task.recipe.data.max_length - greedy(task).new_tokens)
    return example["input_ids"][: max(1, min(most, len(example["input_ids"]) // 2))]


def torch_continued(task: Any, model: nn.Module, prompts: Sequence[list[int]]) -> list[Record]:
    parts = (prompts[at : at + TOGETHER] for at in range(0, len(prompts), TOGETHER))
    return [record for part in parts for record in task.written(model, part, greedy(task))]


def artifact_continued(artifact: Generator, prompts: Sequence[list[int]]) -> list[Record]:
    size = 1 if artifact.settings["one_by_one"] else TOGETHER
    parts = (prompts[at : at + size] for at in range(0, len(prompts), size))
    return [record for part in parts for record in artifact.predict([(ids,) for ids in part])]
