"""What a task is: its config, how rows become micro-batches, and what is predicted and scored.

A new task is one file beside this one, found by its name. Engine, loop and checkpoint know tasks only through this
class. Labels are aligned with logits by `collate` and -100 is ignored, so that loss and count are generic. Torch is
imported inside functions only: the config is read on login nodes.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe
    from trainer.sections import Section

Example = dict[str, list[int]]
Texts = dict[str, str]
Batch = dict[str, "Tensor"]
Record = dict[str, Any]

IGNORED = -100


class Task(ABC):
    """One kind of training. A subclass is final; its `kind` is the value of `task.kind` in a recipe."""

    kind: ClassVar[str]
    config: ClassVar[type[Section]]
    roles: ClassVar[tuple[str, ...]]  # what a row holds: the keys of data.columns
    inputs: ClassVar[tuple[str, ...]]  # the token inputs in a batch, for counting padding
    metrics: ClassVar[dict[str, str]]  # metric -> "min" or "max", those that can select a checkpoint
    toy_rows: ClassVar[tuple[Texts, ...]]  # a few rows on which the contract test runs every task

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer

    # -- rows to micro-batches -------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Token ids of cleaned rows, cut to `data.max_length` (special tokens included)."""

    @abstractmethod
    def length(self, example: Example) -> int:
        """Width of the example in a micro-batch: its longest side, in tokens."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """int64 tensors, the widths padded to a multiple of `data.pad_multiple`; `labels` aligned with logits."""

    def tokens(self, example: Example) -> int:
        """All tokens of the example, without padding."""
        return sum(map(len, example.values()))

    def targets(self, batch: Batch) -> int:
        """Labels that count: the denominator's share of this micro-batch."""
        return int((batch["labels"] != IGNORED).sum())

    def filler(self) -> Batch:
        """A real dummy row whose labels are all ignored: what a rank runs that has no micro-batch left."""
        batch = self.collate(self.encode([self.toy_rows[0]]))
        return {**batch, "labels": batch["labels"].new_full(batch["labels"].shape, IGNORED)}

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> Tensor:
        """(B, W) int64, W the longest length rounded up to a multiple of `data.pad_multiple`."""
        import torch

        multiple = self.recipe.data.pad_multiple
        width = -(-max(map(len, sequences)) // multiple) * multiple
        return torch.tensor([[*s, *([value] * (width - len(s)))] for s in sequences], dtype=torch.int64)

    # -- model -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The untrained model; the caller has seeded the generator."""

    def model_config(self) -> dict[str, Any]:
        """config.json beside the weights: the model section and what it takes from the tokenizer."""
        settings = self.recipe.model.model_dump(mode="json")
        sizes = {"vocab_size": len(self.tokenizer), "max_length": self.recipe.data.max_length}
        return {"model_type": f"rankzero-{settings['kind']}", **sizes, **settings}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits aligned with `batch["labels"]`."""
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the losses of all labels that count; the caller divides once, by the count of the whole step."""
        from trainer.models.loss import cross_entropy_sum

        logits, labels = self.logits(model, batch), batch["labels"]
        return cross_entropy_sum(logits.flatten(0, -2), labels.flatten(), self.recipe.optim.label_smoothing)

    def row_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each row the sum of its label losses (without smoothing, fp32) and their number, both (B,)."""
        import torch.nn.functional as F

        logits, labels = self.logits(model, batch), batch["labels"]
        each = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view(len(labels), -1).sum(-1), (labels.view(len(labels), -1) != IGNORED).sum(-1)

    # -- evaluation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The fields that `rankzero predict` adds to each row of the batch, such as prediction and score."""

    @abstractmethod
    def input_text(self, row: Texts) -> str:
        """What `predictions.jsonl` shows as the row's input."""

    @abstractmethod
    def target_text(self, row: Texts) -> str:
        """What `predictions.jsonl` shows as the row's target."""

    @abstractmethod
    def score(self, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The flat numbers of `metrics.json` from prediction records."""


def task_classes() -> dict[str, type[Task]]:
    """Every task found beside this file, by kind."""
    import trainer.tasks as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {task.kind: task for task in Task.__subclasses__()}


def make_task(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Task:
    """The task of a recipe.

    Raises:
        UsageError: no task has that kind.
    """
    kind = getattr(recipe.task, "kind", None)
    classes = task_classes()
    if kind not in classes:
        raise UsageError(f"task.kind={kind!r} is not known; allowed: {', '.join(sorted(classes))}")
    return classes[kind](recipe, tokenizer)
