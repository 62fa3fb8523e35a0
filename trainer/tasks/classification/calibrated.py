"""What is chosen on `validation` after the training of a classifier: a temperature, and a threshold of two classes."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.files import read_json
from trainer.task.base import Record, Task
from trainer.tasks.classification.config import ClassificationConfig
from trainer.tasks.classification.multi_label.thresholds import best_thresholds, checked_thresholds

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

log = logging.getLogger("rankzero")


class CalibratedTask(Task, ABC):
    """Part of `Classification`."""

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(recipe, tokenizer, data)
        self.calibrated: dict[str, Any] = {}  # what was chosen, as in config.json

    @property
    def settings(self) -> ClassificationConfig:
        config: Any = self.recipe.task
        return config

    @property
    def decision(self) -> tuple[int, float] | None:
        """One of two classes, and the probability from which it is predicted; None = the most probable class."""
        own, names = self.settings.thresholds, self.settings.names
        if isinstance(own, float):
            return 1, own
        if isinstance(own, dict):
            return next((names.index(name), threshold) for name, threshold in own.items())
        return (1, checked_thresholds(self.calibrated, names)[names[1]]) if own == "auto" else None

    @property
    def calibrates(self) -> bool:
        return self.settings.calibration is not None or self.settings.thresholds == "auto"

    def calibration(self, records: Collection[Record]) -> dict[str, Any]:
        """Return the temperature with the smallest loss on `validation`, and the threshold of the second class."""
        from trainer.tasks.classification.calibration import best_temperature, tempered

        found: dict[str, Any] = {}
        if not records:
            return found
        rows: Iterable[Record] = records
        if self.settings.calibration:
            found["temperature"] = best_temperature(records)
            rows = tempered(records, found["temperature"])
        if self.settings.thresholds == "auto":
            found["thresholds"] = best_thresholds(
                ({**record, "target": [record["target"]]} for record in rows), self.settings.names[1:]
            )
        return found

    def calibrate(self, model: nn.Module, found: Mapping[str, Any]) -> dict[str, Tensor]:
        """Divide the logits by the temperature, in the output layer: stock transformers then gives the same."""
        self.calibrated, count = dict(found), len(self.settings.names)
        if "temperature" not in found:
            return {}
        changed = self.scale_outputs(model, [1 / found["temperature"]] * count, [0.0] * count)
        if not changed:
            log.warning("task.calibration: this model takes in no temperature: its probabilities stay as trained")
            self.calibrated = _without_temperature(found)
        return changed

    def scale_outputs(self, model: nn.Module, scale: Sequence[float], shift: Sequence[float]) -> dict[str, Tensor]:
        """Multiply and move each output in the output layer. Return its parameters; none if nothing is changed."""
        from trainer.tasks.classification.calibration import scale_outputs

        return scale_outputs(self, model, scale, shift)

    def read_calibration(self, folder: Path) -> None:
        found = (read_json(folder / "config.json") or {}).get("calibration")
        self.calibrated = found if isinstance(found, dict) else {}


def _without_temperature(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the threshold that decides alike on probabilities that have no temperature."""
    power, chosen = found["temperature"], found.get("thresholds", {})
    own = {name: share**power / (share**power + (1 - share) ** power) for name, share in chosen.items()}
    return {"thresholds": own} if own else {}
