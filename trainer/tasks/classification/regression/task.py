"""One or more numbers per row: `text` (and `text_pair`) in, `value` or the named targets out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.data.roles import Number, Roles
from trainer.errors import CheckpointError
from trainer.models import loss_groups
from trainer.task.base import IGNORED, Assessed, Batch, Example, Record, Row
from trainer.tasks.classification.config import ClassificationConfig
from trainer.tasks.classification.regression.metric_specs import SPECS
from trainer.tasks.classification.task import Classification
from trainer.user_code import is_reference

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe import Recipe

Scale = tuple[float, float]  # mean and deviation of a target in the training rows


class Regression(Classification):
    """Numbers, standardized by the training rows. The loss of a step is divided by its rows times the targets.

    In training the model's outputs are standardized. After it, mean and deviation go into the output layer, so that the
    published model gives numbers in the unit of the target. A model whose output layer has no bias keeps its outputs.
    """

    baselines_path = "trainer.tasks.classification.regression.baseline:of_task"
    exporter_path = "trainer.tasks.classification.regression.export:RegressionExport"
    problem_type = "regression"
    averages = False
    r_drop = False
    metric_specs = SPECS
    toy_rows: ClassVar[tuple[Row, ...]] = (
        {"text": "A wonderful film.", "text_pair": "I liked it.", "value": 4.5},
        {"text": "Two hours of boredom, and no end.", "text_pair": "Too long.", "value": 1.5},
        {"text": "Great!", "text_pair": "Fun.", "value": 5.0},
        {"text": "The worst thing that I have seen this year.", "text_pair": "Bad.", "value": 1.0},
    )

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        found = cls.lone_pair(recipe)
        if recipe.optim.label_smoothing:
            found.append("optim.label_smoothing: task.mode regression has no classes to spread over; set it to 0")
        if recipe.data.check == "off":
            found.append("data.check=off: task.mode regression needs the mean of the targets; set data.check=sample")
        return found

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        """Return whether all validation rows have the same value, for which correlations are not defined."""
        metric = recipe.loop.early_stopping.metric
        if metric not in ("pearson", "spearman", "r2") or "validation" not in data:
            return None
        config: Any = recipe.task
        numbers = data["validation"].get("numbers", {})
        equal = [name for name in config.names if name in numbers and numbers[name]["min"] == numbers[name]["max"]]
        return f"all rows of data.validation have the same {equal[0]!r}" if equal else None

    @classmethod
    def target_roles(cls, config: ClassificationConfig) -> Roles:
        return dict.fromkeys(config.names, Number())

    def written_target(self, answer: Mapping[str, Any]) -> Any:
        return answer["value"]

    def encode_target(self, row: Row) -> Example:
        """Return `value`: the numbers in the order of the targets, or none."""
        names = self.settings.names
        return {"value": [float(row[name]) for name in names] if all(name in row for name in names) else []}

    def collate_targets(self, examples: Sequence[Example]) -> Tensor:
        """Return (B, T) fp32, standardized; IGNORED = not known."""
        import torch

        scales = self.scales
        rows = [
            [(value - mean) / deviation for value, (mean, deviation) in zip(e["value"], scales, strict=True)]
            if e["value"]
            else [float(IGNORED)] * len(scales)
            for e in examples
        ]
        return torch.tensor(rows, dtype=torch.float32)

    # -- the unit of the targets -----------------------------------------------------------------------------------

    @property
    def scales(self) -> list[Scale]:
        """Mean and deviation of each target: of the published model, or of the surveyed training rows."""
        stored = self.calibrated.get("targets")
        numbers = stored if isinstance(stored, Mapping) else self.data.get("train", {}).get("numbers", {})
        found = [numbers.get(name, {"mean": 0.0, "deviation": 1.0}) for name in self.settings.names]
        return [(float(one["mean"]), float(one["deviation"]) or 1.0) for one in found]

    @property
    def in_unit(self) -> bool:
        """Whether the model's outputs are in the unit of the targets, not standardized."""
        return bool(self.calibrated.get("in_output_layer"))

    def standardized(self, outputs: Tensor) -> Tensor:
        """Return standardized outputs from those of the model (B, T)."""
        if not self.in_unit:
            return outputs
        mean, deviation = (outputs.new_tensor(part) for part in zip(*self.scales, strict=True))
        return (outputs - mean) / deviation

    @property
    def decision(self) -> None:
        """There are no classes."""
        return None

    def calibration(self, records: Collection[Record]) -> dict[str, Any]:
        pairs = zip(self.settings.names, self.scales, strict=True)
        return {"targets": {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in pairs}}

    def calibrate(self, model: nn.Module, found: Mapping[str, Any]) -> dict[str, Tensor]:
        """Undo the standardization in the output layer: stock transformers then gives the same numbers."""
        self.calibrated = dict(found)
        means, deviations = zip(*self.scales, strict=True)
        changed = self.scale_outputs(model, deviations, means)
        self.calibrated = {**found, "in_output_layer": bool(changed)}
        return changed

    @property
    def calibrates(self) -> bool:
        return False

    # -- loss and predictions --------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = self._losses(self.logits(model, batch).float(), batch["labels"])
        return loss_groups.total(losses * batch["weights"] if self.weighted else losses)

    @property
    def usual_loss(self) -> str:
        """The loss of evaluations, also if a function of the user is minimized."""
        return "mse" if is_reference(self.settings.loss) else self.settings.loss

    def _losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from trainer.tasks.classification.losses import regression_loss

        return regression_loss(self.standardized(outputs), labels, self.usual_loss, self.settings.huber_delta)

    def guess(self) -> tuple[float, str] | None:
        return (1.0, "answering the mean of the training rows") if self.usual_loss == "mse" else None

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        outputs, labels = self.logits(model, batch).float(), batch["labels"]
        counts = (labels != IGNORED).sum(-1)
        return Assessed(self._losses(outputs, labels), counts, self._records(outputs))

    def _records(self, logits: Tensor) -> list[Record]:
        scales = [(0.0, 1.0)] * len(self.scales) if self.in_unit else self.scales
        records = []
        for row in logits.double().tolist():
            numbers = [output * deviation + mean for output, (mean, deviation) in zip(row, scales, strict=True)]
            value = dict(zip(self.settings.names, numbers, strict=True)) if self.settings.targets else numbers[0]
            records.append({"prediction": value, "values" if self.settings.targets else "value": value})
        return records

    def answer(self, record: Record) -> Record:
        return {key: value for key, value in record.items() if key in ("value", "values")}

    def explained(self, record: Mapping[str, Any]) -> int:
        """Return the first target."""
        return 0

    def target_text(self, row: Row) -> Any:
        """Return the true number, or those of several targets by name."""
        return {name: row[name] for name in self.settings.targets} if self.settings.targets else row["value"]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.classification.regression.metrics import score_regression

        return score_regression(records, self.settings.names, resamples=resamples)

    def read_calibration(self, folder: Path) -> None:
        """Read mean and deviation of the targets; a configuration that no training has written has none.

        Raises:
            CheckpointError: config.json has something else in their place.
        """
        super().read_calibration(folder)
        if not self.calibrated:
            return
        try:
            usable = len(self.scales) == len(self.settings.names) and isinstance(self.calibrated.get("targets"), dict)
        except (TypeError, ValueError, KeyError, AttributeError):
            usable = False
        if not usable:
            raise CheckpointError(f"{folder / 'config.json'}: calibration has no mean and deviation of the targets; "
                                  "restore the file")  # fmt: skip
