"""Any number of labels per row: `text` (and `text_pair`) in, `labels` out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.data.roles import Roles
from trainer.models import loss_groups
from trainer.task.base import IGNORED, Assessed, Batch, Example, Record, Row
from trainer.tasks.classification.config import ClassificationConfig
from trainer.tasks.classification.multi_label.metric_specs import SPECS
from trainer.tasks.classification.multi_label.thresholds import best_thresholds, checked_thresholds
from trainer.tasks.classification.roles import LabelSet
from trainer.tasks.classification.task import Classification

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.recipe import Recipe


class MultiLabel(Classification):
    """Labels that do not exclude each other. The loss of a step is divided by its rows times the labels."""

    exporter_path = "trainer.tasks.classification.multi_label.export:MultiLabelExport"
    problem_type = "multi_label_classification"
    averages = False
    r_drop = False
    metric_specs = SPECS
    toy_rows: ClassVar[tuple[Row, ...]] = (
        {"text": "A wonderful film.", "text_pair": "I liked it.", "labels": []},
        {"text": "Two hours of boredom, and no end.", "text_pair": "Too long.", "labels": []},
        {"text": "Great!", "text_pair": "Fun.", "labels": []},
        {"text": "The worst thing that I have seen this year.", "text_pair": "Bad.", "labels": []},
    )

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        return cls.lone_pair(recipe) + cls.uncounted(recipe)

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        return None

    @classmethod
    def target_roles(cls, config: ClassificationConfig) -> Roles:
        return {"labels": LabelSet(frozenset(config.labels), separator=config.separator)}

    def written_target(self, answer: Mapping[str, Any]) -> Any:
        """Return the first value that files hold for each class: a list, or a text with `task.separator`."""
        values = {name: value for value, name in reversed(self.settings.labels.items())}
        written = [values[name] for name in answer["labels"]]
        return written if self.settings.separator is None else self.settings.separator.join(written)

    def encode_target(self, row: Row) -> Example:
        """Return `label`: the ids of the labels, or IGNORED for a row whose labels are not known."""
        if "labels" not in row:
            return {"label": [IGNORED]}
        return {"label": sorted({self.settings.names.index(self.settings.labels[value]) for value in row["labels"]})}

    def collate_targets(self, examples: Sequence[Example]) -> Tensor:
        """Return (B, C) int64: 1 = the row has the label, 0 = it has not, IGNORED = not known."""
        import torch

        labels = torch.zeros(len(examples), len(self.settings.names), dtype=torch.int64)
        for row, example in zip(labels, examples, strict=True):
            if example["label"] == [IGNORED]:
                row.fill_(IGNORED)
            else:
                row[example["label"]] = 1
        return labels

    # -- loss ------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, weights = self.logits(model, batch).float(), self.class_weights()
        positive = None if weights is None else logits.new_tensor(weights)
        losses = self._losses(logits, batch["labels"], positive, self.smoothing, self.settings.focal_gamma)
        return loss_groups.total(losses * batch["weights"] if self.weighted else losses)

    def _losses(self, logits: Tensor, labels: Tensor, *options: Any) -> Tensor:
        """Return the summed loss of the labels of each row. `options`: see `binary_cross_entropy`."""
        from trainer.tasks.classification.losses import binary_cross_entropy

        return binary_cross_entropy(logits, labels, *options)

    def class_weights(self) -> list[float] | None:
        """Return how much a label that a row has counts, in the order of the ids (`pos_weight`)."""
        if self.settings.class_weights != "balanced":
            return self.settings.weights_by_class
        train = self.data["train"]
        rows = train.get("checked_rows", train["rows"])  # those whose labels were counted
        return [(rows - count) / max(1, count) if count < rows else 1.0 for count in self.class_counts()]

    def guess(self) -> tuple[float, str] | None:
        return math.log(2), "guessing for each label whether a row has it"

    # -- predictions -----------------------------------------------------------------------------------------------

    @property
    def thresholds(self) -> dict[str, float]:
        """The probability of each label from which it is predicted: of the recipe, or chosen after the training."""
        own, names = self.settings.thresholds, self.settings.names
        if isinstance(own, float):
            return dict.fromkeys(names, own)
        return checked_thresholds({"thresholds": own} if isinstance(own, dict) else self.calibrated, names)

    @property
    def calibrates(self) -> bool:
        return self.settings.thresholds in (None, "auto")

    def calibration(self, records: Collection[Record]) -> dict[str, Any]:
        """Return the threshold of each label with the best F1 on `validation`."""
        if self.calibrates and records:
            return {"thresholds": best_thresholds(records, self.settings.names)}
        return {"thresholds": self.thresholds}

    @property
    def decision(self) -> None:
        """The classes do not exclude each other: `thresholds` decide."""
        return None

    def calibrate(self, model: nn.Module, found: Mapping[str, Any]) -> dict[str, Tensor]:
        self.calibrated = dict(found)
        return {}

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        logits, labels = self.logits(model, batch).float(), batch["labels"]
        counts = (labels != IGNORED).sum(-1)
        return Assessed(self._losses(logits, labels), counts, self._records(logits))

    def _records(self, logits: Tensor) -> list[Record]:
        names, thresholds, records = self.settings.names, self.thresholds, []
        for row in logits.double().sigmoid().tolist():
            shares = dict(zip(names, row, strict=True))
            labels = [name for name, p in shares.items() if p >= thresholds[name]]
            records.append({"prediction": labels, "labels": labels, "probabilities": shares})
        return records

    def answer(self, record: Record) -> Record:
        return {"labels": record["labels"], "probabilities": record["probabilities"]}

    def explained(self, record: Mapping[str, Any]) -> int:
        """Return the label with the highest probability among those of `read_record`."""
        return self.settings.names.index(record["first"])

    def target_text(self, row: Row) -> Any:
        """Return the true labels, in the order of the ids."""
        own = {self.settings.labels[value] for value in row["labels"]}
        return [name for name in self.settings.names if name in own]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.classification.multi_label.metrics import score_labels

        return score_labels(records, self.settings.names, resamples=resamples)
