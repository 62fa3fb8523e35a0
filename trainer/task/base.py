"""The interface of a task: its config, how rows become micro-batches, and what is predicted and scored.

A task is one folder in trainer/tasks, found by its name. Engine, loop and checkpoint know tasks only through this
class. Labels are aligned with logits by `collate` and -100 is ignored, so that loss and count are generic. Torch is
imported inside functions only, since recipes are read on login nodes.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainer.concatenation import is_description
from trainer.data.roles import Roles
from trainer.errors import UsageError
from trainer.models.families import Padding, padding_of
from trainer.task.baseline import Baseline
from trainer.task.metrics import Metric
from trainer.task.micro_batches import IGNORED, Batch, MicroBatches, Texts
from trainer.task.prediction_rows import Example, Line, Row
from trainer.task.published_model import PublishedModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from trainer.data.profile import Table
    from trainer.recipe import Recipe
    from trainer.recipe.sections import Section
    from trainer.task.suggestion import Suggestion

Record = dict[str, Any]

__all__ = ["IGNORED", "Batch", "Example", "Line", "Row", "Task", "Texts"]

SHOWN = 48  # most tokens of a row in attention.json
PROMPT = 32  # most tokens of a text that a language model continues


class Assessed(NamedTuple):
    """Losses, counts and predictions of the B rows of an evaluation batch."""

    losses: Tensor  # (B,) fp32, each summed over the row's labels, without smoothing
    counts: Tensor  # (B,) int64, labels that count
    records: list[Record]  # what `predict` returns; empty dicts if nothing is predicted


class Task(MicroBatches, PublishedModel):
    """One kind of training. A subclass is final; its `kind` is the value of `task.kind` in a recipe."""

    kind: ClassVar[str]
    config: ClassVar[type[Section]]
    models: ClassVar[tuple[str, ...]]  # the kinds of model that support the task
    embeds: ClassVar[bool] = False  # the trunk reads single texts, whose states `rankzero embed` returns
    averages: ClassVar[bool] = False  # predictions have probabilities, which `rankzero ensemble` averages
    labels_are_tokens: ClassVar[bool] = False  # the loss is compared with that of guessing tokens by their frequency
    scores_documents: ClassVar[bool] = False  # predictions and targets are texts: evaluation.document_column
    r_drop: ClassVar[bool] = False  # `loss` is cross entropy of classes or tokens: optim.r_drop
    separate_vocabularies: ClassVar[bool] = False  # targets may have their own: tokenizer.train.shared=false
    metric_specs: ClassVar[tuple[Metric, ...]] = ()  # the most important one first
    metrics: ClassVar[dict[str, str]]  # metric -> "min" or "max", those that can select a checkpoint; from metric_specs
    cheap_metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")  # metrics that need no prediction

    def __init_subclass__(cls, **options: Any) -> None:
        """Derive `metrics` from `metric_specs`. A task may set only `metrics`: reports then name each by its key."""
        super().__init_subclass__(**options)
        if "loss" in cls.__dict__ and "r_drop" not in cls.__dict__:
            cls.r_drop = False  # its loss does not expect each row twice
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
        """`data`: the survey by split (the manifest's "data"), which only training needs."""
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.data = data or {}
        self.padding = Padding().also(recipe.data.pad_multiple)  # `padded_for` replaces it

    @classmethod
    def of(cls, recipe: Recipe) -> type[Task]:
        """Return the class for a recipe. A kind of task may have several classes."""
        return cls

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        """Return contradictions in the recipe that only this task knows, before any row is read."""
        return []

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        """Return why `loop.early_stopping.metric` has no value on the surveyed `data`, or None if it has one."""
        return None

    @classmethod
    @abstractmethod
    def roles(cls, config: Any) -> Roles:
        """Return the type of each value of a row, by role (the keys of data.columns).

        Types are `Text`, `Label`, `Labels`, `Number` and `Tokens` of trainer.data.roles.

        Args:
            config: the `task` section of a recipe.
        """

    # -- model -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def build_model(self, trained: Path | None = None) -> nn.Module:
        """Build the model with its initial weights. The caller has seeded the generator.

        Args:
            trained: the folder model/ of a finished run. The architecture is then built without initial weights, which
                may not be available any more, and the caller loads the trained ones.
        """

    def check_model(self, model: nn.Module) -> None:
        """Check what a new model computes. All ranks.

        Raises:
            UsageError: it cannot be trained as the recipe says.
        """

    def padded_for(self, model: nn.Module) -> nn.Module:
        """Set `padding` to what the family of a model needs. Return the model."""
        config = getattr(getattr(model, "trunk", model), "config", None)
        self.padding = padding_of(config).also(self.recipe.data.pad_multiple)
        if self.recipe.data.padding == "none":
            _import("trainer.models.padding_free:attach_trunk")(model)
        if self.padding.left:  # for stock transformers, which loads model/
            self.tokenizer.padding_side = self.tokenizer.init_kwargs["padding_side"] = "left"
        return model

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits aligned with `batch["labels"]`."""
        found = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return getattr(found, "logits", found)  # models of the transformers library return more than logits

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the losses of all labels. The caller divides it once, by the count of the step."""
        return self.summed(self.logits(model, batch), batch["labels"])

    @property
    def smoothing(self) -> float:
        """Share of the probability that is spread over all labels."""
        return self.recipe.optim.label_smoothing

    def summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of logits (…, V) and labels (…). With R-Drop both have each row twice."""
        from trainer.models.loss import cross_entropy_sum, r_drop_loss

        if weight := self.recipe.optim.r_drop:
            once = labels[: len(labels) // 2].flatten()
            return r_drop_loss(logits.flatten(0, -2), once, self.smoothing, weight)
        return cross_entropy_sum(logits.flatten(0, -2), labels.flatten(), self.smoothing)

    @property
    def several_documents(self) -> bool | None:
        """Whether a row may hold several documents, separated by position ids; None: unknown, read on the device."""
        return False if self.mask_optional else None

    def loss_and_memory(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the loss, and the `memory` (B, …) of the next micro-batch of the lane, detached."""
        import torch

        from trainer.models import library_masks, padding_free

        if self.recipe.optim.r_drop:
            batch = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
        if self.several_documents is None:
            return self.loss(model, batch), None
        rows = padding_free.Rows.of(batch, batch[self.inputs[0]].shape[1])
        padded = {name: tensor for name, tensor in batch.items() if not is_description(name)} if rows else batch
        with library_masks.known_rows(several=self.several_documents), padding_free.concatenated(rows):
            return self.loss(model, padded), None

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        """Return the losses of the rows of an evaluation batch, and their predictions if `predict` is set."""
        import torch.nn.functional as F

        logits, labels = self.logits(model, batch), batch["labels"]
        each = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
        counts = (labels.view(len(labels), -1) != IGNORED).sum(-1)
        records = self.predict(model, batch) if predict else [{} for _ in labels]
        return Assessed(each.view(len(labels), -1).sum(-1), counts, records)

    # -- evaluation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Return the keys of predictions.jsonl for each row, besides texts and loss. "prediction" is required."""

    def stream(self, model: nn.Module, batch: Batch) -> Iterator[str]:
        """Yield the prediction of a batch of one row, in pieces as they are generated.

        Raises:
            UsageError: the task does not generate text.
        """
        raise UsageError(f"--stream: task {self.kind} does not generate text; leave --stream out")

    def answer(self, record: Record) -> Record:
        """Return what `rankzero predict` prints besides the text, from a record of `predict`."""
        return record

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return attention and relevance of a few predicted rows for attention.json. None by default.

        The model is on the CPU, in fp32 and in eval mode.
        """
        return []

    def continued(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Return continuations of a few rows by a language model, with the references. None by default.

        The model is on the CPU, in fp32 and in eval mode.
        """
        return []

    def written_target(self, answer: Mapping[str, Any]) -> Any:
        """Return the answer of `predict` for a line as a file of rows holds it, for `predict --rows`."""
        return answer["prediction"]

    @abstractmethod
    def input_text(self, row: Row) -> str:
        """Return the input of a row in predictions.jsonl."""

    @abstractmethod
    def target_text(self, row: Row) -> Any:
        """Return the target of a row in predictions.jsonl: a text, a list of labels or a number."""

    @abstractmethod
    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        """Return the metrics of metrics.json from prediction records.

        Args:
            records: in any order.
            resamples: bootstrap resamples for confidence intervals; 0 = no intervals (evaluations during training).
        """

    # "module:function" of a task and training rows that returns what `baselines` does; None: no baseline
    baselines_path: ClassVar[str | None] = None

    def baselines(self, rows: Sequence[Row]) -> list[Baseline] | str:
        """Return simple models that were fitted to training rows, the strongest first, or why there are none."""
        return "the task lacks one" if self.baselines_path is None else _import(self.baselines_path)(self, rows)

    # -- between training and publication ----------------------------------------------------------------------------

    @property
    def calibrates(self) -> bool:
        """Whether `calibration` needs predictions of `validation`."""
        return False

    def calibration(self, records: Collection[Record]) -> dict[str, Any]:
        """Choose what follows the training, such as thresholds. Return it as JSON. Only rank zero calls this.

        Args:
            records: of `validation`, by the selected weights; empty if there is none, or unless `calibrates`.
        """
        return {}

    def calibrate(self, model: nn.Module, found: Mapping[str, Any]) -> dict[str, Tensor]:
        """Apply the result of `calibration`. Return the parameters of the model that it has changed. All ranks."""
        return {}

    def read_calibration(self, folder: Path) -> None:
        """Read what `calibrate` has applied from the folder of a published model."""

    def guess(self) -> tuple[float, str] | None:
        """Return the loss per label of a model that guesses, and how it does; None if that is not known."""
        names = getattr(self.recipe.task, "names", None)
        return None if names is None else (math.log(len(names)), f"guessing among {len(names)} classes")

    # -- export (what trainer.export asks) -------------------------------------------------------------------------

    # "module:class" of its trainer.export.task_export.TaskExport; that class alone exports weights
    exporter_path: ClassVar[str] = "trainer.export.task_export:TaskExport"

    @classmethod
    def exporter(cls) -> type[Any]:
        """Import the class in `exporter_path`, which needs torch and onnx."""
        exporter: type[Any] = _import(cls.exporter_path)
        return exporter

    # -- rankzero init ---------------------------------------------------------------------------------------------

    # "module:function" that returns a trainer.task.suggestion.Suggestion for the columns of a file, or None
    suggester_path: ClassVar[str | None] = None

    @classmethod
    def suggest(cls, table: Table, columns: Mapping[str, str]) -> Suggestion | None:
        """Return the parts of a recipe for the rows of a file, or None if the task cannot have such rows.

        Args:
            table: the training rows.
            columns: role -> column, as far as the user has set it.
        """
        return None if cls.suggester_path is None else _import(cls.suggester_path)(table, columns)

    # -- report and model card (what trainer.report asks) ----------------------------------------------------------

    # "module:class" of its trainer.report.task_report.TaskReport, which by itself gives a plain report
    reporter_path: ClassVar[str] = "trainer.report.task_report:TaskReport"

    @classmethod
    def reporter(cls) -> type[Any]:
        """Import the class in `reporter_path`, which needs no torch."""
        reporter: type[Any] = _import(cls.reporter_path)
        return reporter


def _import(path: str) -> Any:
    """Import the class or function of "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
