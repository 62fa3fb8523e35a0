"""What a task is: its config, how rows become micro-batches, and what is predicted and scored.

A task is one folder in trainer/tasks, found by its name. Engine, loop and checkpoint know tasks only through this
class. Labels are aligned with logits by `collate` and -100 is ignored, so that loss and count are generic. Torch is
imported inside functions only: the config is read on login nodes.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainer.data.roles import Roles, Text
from trainer.errors import UsageError
from trainer.models.families import Padding, padding_of
from trainer.models.hf_config import padding_id
from trainer.redaction import origin
from trainer.task.metrics import Metric

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from trainer.data.token_ids import Layout
    from trainer.recipe import Recipe
    from trainer.recipe.sections import Section

Example = dict[str, list[int]]
Row = dict[str, Any]  # role -> value of the type that the role declares
Texts = dict[str, str]
Batch = dict[str, "Tensor"]
Record = dict[str, Any]

IGNORED = -100
SHOWN = 48  # tokens of a row whose attention is kept
PROMPT = 32  # tokens, at most, of the beginning of a text that a language model is given to continue


class Assessed(NamedTuple):
    """What an evaluation needs of the B rows of a batch."""

    losses: Tensor  # (B,) fp32, each summed over the row's labels, without smoothing
    counts: Tensor  # (B,) int64, labels that count
    records: list[Record]  # what `predict` gives; empty dicts where nothing was to be predicted


class Task(ABC):
    """One kind of training. A subclass is final; its `kind` is the value of `task.kind` in a recipe."""

    kind: ClassVar[str]
    config: ClassVar[type[Section]]
    models: ClassVar[tuple[str, ...]]  # the kinds of model that can do it
    embeds: ClassVar[bool] = False  # the trunk reads single texts, whose states `rankzero embed` returns
    averages: ClassVar[bool] = False  # predictions have probabilities, which `rankzero ensemble` averages
    labels_are_tokens: ClassVar[bool] = False  # the loss is compared with that of guessing tokens by their frequency
    inputs: ClassVar[tuple[str, ...]]  # the token inputs in a batch, for counting padding
    metric_specs: ClassVar[tuple[Metric, ...]] = ()  # the most important one first
    metrics: ClassVar[dict[str, str]]  # metric -> "min" or "max", those that can select a checkpoint; from metric_specs
    cheap_metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")  # those that need no prediction
    toy_rows: ClassVar[tuple[Row, ...]]  # a few rows on which the contract test runs every task

    def __init_subclass__(cls, **options: Any) -> None:
        """Derive `metrics` from `metric_specs`. A task may set only `metrics`: reports then name each by its key."""
        super().__init_subclass__(**options)
        if "metrics" in cls.__dict__:
            known = {spec.key: spec for spec in cls.metric_specs}
            directions: Mapping[str, Any] = cls.metrics
            cls.metric_specs = tuple(
                known.get(key) or Metric(key, better, key.replace("_", " ").capitalize())
                for key, better in directions.items()
            )
        else:
            cls.metrics = {spec.key: spec.direction for spec in cls.metric_specs if spec.direction}

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None
    ) -> None:
        """`data`: what the survey found, by split (the manifest's "data"); only training may need it."""
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.data = data or {}
        self.padding = Padding().also(recipe.data.pad_multiple)  # until the model says otherwise, see `padded_for`

    @classmethod
    def of(cls, recipe: Recipe) -> type[Task]:
        """The class that does what a recipe asks for: a kind may have several ways."""
        return cls

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        """What in the recipe does not go together for this task, before anything is read."""
        return []

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        """Why the surveyed `data` gives `loop.early_stopping.metric` no value; None where it does."""
        return None

    @classmethod
    @abstractmethod
    def roles(cls, config: Any) -> Roles:
        """Return the type of each value of a row, by role (the keys of data.columns).

        Types are `Text`, `Label`, `Labels`, `Number` and `Tokens` of trainer.data.roles.

        Args:
            config: the `task` section of a recipe.
        """

    # -- rows to micro-batches -------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Token ids of cleaned rows, cut to `data.max_length` (special tokens included)."""

    def tokenized(self, row: Row) -> Texts:
        """Return the texts of a cleaned row as they are tokenized, by role."""
        roles = self.roles(self.recipe.task)
        return {name: row[name] for name, role in roles.items() if name in row and isinstance(role, Text)}

    def token_ids(self, rows: Sequence[Row]) -> dict[str, list[list[int]]]:
        """Token ids of the texts of rows, by role: not cut, and without special tokens."""
        from trainer.data.token_ids import encode_batch

        texts = [self.tokenized(row) for row in rows]
        return (
            {role: encode_batch(self.tokenizer, [text[role] for text in texts]) for role in texts[0]} if texts else {}
        )

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        """The roles of a row that training cuts, given how many tokens each text has without special ones.

        A row that has no fewer tokens in any role is cut where a shorter one is.
        """
        return []

    @property
    def longest_input(self) -> int:
        """Tokens, special ones included, of the longest input that `predict` reads as a whole."""
        return self.recipe.data.max_length

    def truncated(self, line: str, example: Example) -> bool:
        """Whether `predict` reads only a part of a line, given what `encode_lines` made of it."""
        if self.length(example) < self.longest_input:
            return False
        ids = self.token_ids([self.cleaned_row(line)])
        return bool(self.cut_roles({role: len(texts[0]) for role, texts in ids.items()}))

    def length(self, example: Example) -> int:
        """Width of the example in a micro-batch: its longest side, in tokens."""
        return len(example["input_ids"])

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """int64 tensors, padded to the widths that `padding` allows; `labels` aligned with logits."""

    def corrupt(self, examples: Sequence[Example], *draw: object) -> Sequence[Example]:
        """The examples of a lane's micro-batch with what is drawn for them (masks), before labels are counted.

        `draw` is the key; there is none in an evaluation, which must be the same each time.
        """
        return examples

    def tokens(self, example: Example) -> int:
        """All tokens of the example, without padding."""
        return len(example["input_ids"])

    def pack(self, examples: Sequence[Example]) -> list[tuple[Example, list[int]]]:
        """What a lane's micro-batches are cut from: sequences made of a block's examples, in training only.

        Each with the numbers of the examples that begin in it, so that every row is counted once; by default a row is
        a sequence.
        """
        return [(example, [number]) for number, example in enumerate(examples)]

    def split(self, batch: Batch, parts: int) -> list[Batch | None]:
        """A micro-batch that does not fit the memory as `parts` of like size; None where there are too few rows."""
        pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
        found = [{name: tensors[i] for name, tensors in pieces.items()} for i in range(parts)]
        return [part if len(next(iter(part.values()))) else None for part in found]

    def targets(self, batch: Batch) -> int:
        """Labels that count: the denominator's share of this micro-batch."""
        return int((batch["labels"] != IGNORED).sum())

    def filler(self) -> Batch:
        """A real dummy row whose labels are all ignored: what a rank runs that has no micro-batch left."""
        example, _ = self.pack(self.encode([self.toy_rows[0]]))[0]
        batch = self.collate([example])
        if (memory := self.memory(1)) is not None:
            batch["memory"] = memory
        return {**batch, "labels": batch["labels"].new_full(batch["labels"].shape, IGNORED)}

    def memory(self, rows: int) -> Tensor | None:
        """What the first micro-batch of a lane is given as `memory`, (rows, …), where later ones are given what the one
        before has left (`loss_and_memory`); None: micro-batches know nothing of each other."""
        return None

    @cached_property
    def layout(self) -> Layout:
        """Where the tokenizer's special tokens go."""
        from trainer.data.token_ids import Layout

        return Layout.of(self.tokenizer, pair="text_pair" in self.roles(self.recipe.task))

    @property
    def pad_id(self) -> int:
        """What rows are padded with."""
        return padding_id(self.tokenizer)

    @property
    def wordless(self) -> set[int]:
        """Ids that stand for no part of a text: special ones but [UNK], unless it is an end of text too, as GPT-2's."""
        own: Any = self.tokenizer
        ends = {own.bos_token_id, own.eos_token_id, own.cls_token_id, own.sep_token_id, own.pad_token_id}
        return set(own.all_special_ids) - ({own.unk_token_id} - ends)

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> Tensor:
        """(B, W) int64, W the width for the longest of them, a multiple of `data.pad_multiple`."""
        import torch

        return torch.tensor(self.padding.rows(sequences, value), dtype=torch.int64)

    def pad_inputs(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask (1 = token), both (B, W), of examples of one sequence."""
        return {
            "input_ids": self.pad([e["input_ids"] for e in examples], self.pad_id),
            "attention_mask": self.pad([[1] * len(e["input_ids"]) for e in examples], 0),
        }

    # -- model -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def build_model(self, trained: Path | None = None) -> nn.Module:
        """The model before its first step; the caller has seeded the generator.

        With `trained`, the folder model/ of a finished run, the same architecture without the weights that it begins
        with, which need not be at hand any more: the caller loads the trained ones.
        """

    def padded_for(self, model: nn.Module) -> nn.Module:
        """The model that was built: from now on micro-batches have the widths that its family wants."""
        config = getattr(getattr(model, "trunk", model), "config", None)
        self.padding = padding_of(config).also(self.recipe.data.pad_multiple)
        if self.padding.left:  # for whoever loads model/ elsewhere
            self.tokenizer.padding_side = self.tokenizer.init_kwargs["padding_side"] = "left"
        return model

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer with the length and the side at which stock transformers then cuts texts."""
        self.tokenizer.model_max_length = self.recipe.data.max_length
        self.tokenizer.save_pretrained(folder)

    def model_config(self, model: nn.Module) -> dict[str, Any]:
        """config.json beside the weights: the model's own, or the model section and what the tokenizer adds to it."""
        from trainer.models.classifiers import config_json

        if (own := config_json(model)) is not None:
            return own
        settings = self.recipe.model.model_dump(mode="json")
        sizes = {"vocab_size": len(self.tokenizer), "max_length": self.recipe.data.max_length}
        settings |= {key: origin(settings[key]) for key in ("name", "init_from") if key in settings}
        return {"model_type": f"rankzero-{settings['kind']}", **sizes, **settings}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits aligned with `batch["labels"]`."""
        found = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return getattr(found, "logits", found)  # models of the transformers library give more than logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the losses of all labels that count; the caller divides once, by the count of the whole step."""
        return self.summed(self.logits(model, batch), batch["labels"])

    def summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (…, V) and the labels (…) that they are aligned with."""
        from trainer.models.loss import cross_entropy_sum

        return cross_entropy_sum(logits.flatten(0, -2), labels.flatten(), self.recipe.optim.label_smoothing)

    def loss_and_memory(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss, and what the lane's next micro-batch will be given as `memory`, (B, …), detached."""
        return self.loss(model, batch), None

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        """Losses of the rows of an evaluation batch, and their predictions if they are wanted."""
        import torch.nn.functional as F

        logits, labels = self.logits(model, batch), batch["labels"]
        each = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
        counts = (labels.view(len(labels), -1) != IGNORED).sum(-1)
        records = self.predict(model, batch) if predict else [{} for _ in labels]
        return Assessed(each.view(len(labels), -1).sum(-1), counts, records)

    # -- evaluation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """What `predictions.jsonl` holds of each row of the batch besides its texts and loss."""

    def stream(self, model: nn.Module, batch: Batch) -> Iterator[str]:
        """The prediction of a batch of one row, in pieces as they are found.

        Raises:
            UsageError: the task has nothing to stream.
        """
        raise UsageError(f"--stream: task {self.kind} does not go on with texts; leave it out")

    def answer(self, record: Record) -> Record:
        """What `rankzero predict` prints beside the text, from what `predict` gives."""
        return record

    def row_of(self, line: str) -> Row:
        """The row behind a line of text that `rankzero predict` is given."""
        return {next(iter(self.roles(self.recipe.task))): line}

    def cleaned_row(self, line: str) -> Row:
        """The row behind a line of text, cleaned as in the training."""
        from trainer.data.cleaning import cleaner

        clean = cleaner(self.recipe.data.cleaning)
        return {role: clean(text) for role, text in self.row_of(line).items()}

    def encode_lines(self, lines: Sequence[str]) -> list[Example]:
        """Examples of lines as `rankzero predict` is given them, cleaned as in the training."""
        return self.encode([self.cleaned_row(line) for line in lines])

    def encode_lines_apart(self, lines: Sequence[str]) -> tuple[dict[int, Example], dict[int, str]]:
        """`encode_lines` by the index of the line, and the error of each line that cannot be encoded."""
        with contextlib.suppress(Exception):  # whatever a cleaning step or a tokenizer raises
            return dict(enumerate(self.encode_lines(lines))), {}
        examples: dict[int, Example] = {}
        errors: dict[int, str] = {}
        for i, line in enumerate(lines):
            try:
                examples[i] = self.encode_lines([line])[0]
            except Exception as error:
                errors[i] = f"{type(error).__name__}: {str(error)[:200]}"
        return examples, errors

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Attention and relevance of a few predicted rows, as `attention.json` holds them; none by default.

        The model is on the CPU, in fp32 and in eval mode.
        """
        return []

    def continued(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """How a language model goes on with a few of the predicted rows, beside how they do; none by default.

        The model is on the CPU, in fp32 and in eval mode.
        """
        return []

    @abstractmethod
    def input_text(self, row: Row) -> str:
        """What `predictions.jsonl` shows as the row's input."""

    @abstractmethod
    def target_text(self, row: Row) -> str:
        """What `predictions.jsonl` shows as the row's target."""

    @abstractmethod
    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        """The flat numbers of `metrics.json` from prediction records.

        `resamples`: behind the intervals; 0 = no intervals, for evaluations in the middle of the training.
        """

    # -- export (what trainer.export asks) -------------------------------------------------------------------------

    # "module:class" of its trainer.export.task_export.TaskExport, which by itself exports weights; "": no artifacts
    exporter_path: ClassVar[str] = "trainer.export.task_export:TaskExport"

    @classmethod
    def exporter(cls) -> type[Any] | None:
        """Import the class in `exporter_path`, which needs torch and onnx."""
        return _import(cls.exporter_path) if cls.exporter_path else None

    # -- report and model card (what trainer.report asks) ----------------------------------------------------------

    # "module:class" of its trainer.report.task_report.TaskReport, which by itself gives a plain report
    reporter_path: ClassVar[str] = "trainer.report.task_report:TaskReport"

    @classmethod
    def reporter(cls) -> type[Any]:
        """Import the class in `reporter_path`, which needs no torch."""
        return _import(cls.reporter_path)


def _import(path: str) -> type[Any]:
    """The class behind "module:class"."""
    module, _, name = path.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers with four digits: for pictures."""
    return values.double().mul(1e4).round().div(1e4).tolist()


def attention_row(
    record: Mapping[str, Any], tokens: Sequence[str], keys: Sequence[str], weights: Tensor, relevance: Tensor
) -> dict[str, Any]:
    """A row of `attention.json`: weights (L, H, T, S) of T tokens that look at S keys, relevance (S) of the keys."""
    return {
        "id": record["id"], "title": record["input"], "prediction": record["prediction"], "target": record["target"],
        "tokens": list(tokens), "keys": list(keys), "layers": weights.shape[0], "heads": weights.shape[1],
        "weights": rounded(weights), "relevance": rounded(relevance),
    }  # fmt: skip
