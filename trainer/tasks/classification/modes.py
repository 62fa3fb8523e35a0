"""The classes of the modes of classification, each with and without weights of rows."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from trainer.recipe import Recipe
from trainer.report.task_report import TaskReport
from trainer.task.base import Task
from trainer.tasks.classification.multi_label.task import MultiLabel
from trainer.tasks.classification.regression.task import Regression
from trainer.tasks.classification.task import Classification


class WeightedClassification(Classification):
    """One label per row, with a weight."""

    weighted = True


class WeightedMultiLabel(MultiLabel):
    """Any number of labels per row, with a weight of the row."""

    weighted = True


class WeightedRegression(Regression):
    """One or more numbers per row, with a weight of the row."""

    weighted = True


MODES: dict[tuple[str, bool], type[Classification]] = {
    ("single", False): Classification,
    ("single", True): WeightedClassification,
    ("multi", False): MultiLabel,
    ("multi", True): WeightedMultiLabel,
    ("regression", False): Regression,
    ("regression", True): WeightedRegression,
}


class AnyClassification(Classification):
    """The task of the kind `classification`, before its mode is known."""

    reporter_path = "trainer.tasks.classification.modes:report_of_mode"

    @classmethod
    def of(cls, recipe: Recipe) -> type[Task]:
        config: Any = recipe.task
        return MODES[config.mode, "weight" in recipe.data.columns]


REPORTS = {
    "single": "trainer.tasks.classification.report:ClassificationReport",
    "multi": "trainer.tasks.classification.multi_label.report:MultiLabelReport",
    "regression": "trainer.tasks.classification.regression.report:RegressionReport",
}


def report_of_mode(**values: Any) -> TaskReport:
    """Open the report of the mode that a recipe sets, with the metrics of that mode.

    Args:
        values: the fields of `TaskReport`.
    """
    mode = str(values["recipe"]["task"].get("mode", "single"))
    module, _, name = REPORTS[mode if mode in REPORTS else "single"].partition(":")
    report: TaskReport = getattr(importlib.import_module(module), name)(**values)
    return report if mode == "single" else replace(report, metrics=MODES[mode, False].metric_specs)
