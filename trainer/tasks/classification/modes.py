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

BASES: dict[str, type[Classification]] = {"single": Classification, "multi": MultiLabel, "regression": Regression}
# mode, and whether rows have a weight -> class of the task
MODES: dict[tuple[str, bool], type[Classification]] = {
    (mode, weighted): type(f"Weighted{base.__name__}", (base,), {"weighted": True}) if weighted else base
    for mode, base in BASES.items()
    for weighted in (False, True)
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
    """Open the report of the mode that a recipe sets, with the metrics of that mode and those of the user.

    Args:
        values: the fields of `TaskReport`.
    """
    mode = str(values["recipe"]["task"].get("mode", "single"))
    module, _, name = REPORTS[mode if mode in REPORTS else "single"].partition(":")
    report: TaskReport = getattr(importlib.import_module(module), name)(**values)
    own = values["metrics"][len(AnyClassification.metric_specs) :]
    return report if mode == "single" else replace(report, metrics=(*MODES[mode, False].metric_specs, *own))
