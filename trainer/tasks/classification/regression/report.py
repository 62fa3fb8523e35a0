"""Report and model card of regression models: residuals by value, and the rows with the largest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import DataError
from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.files import write_atomically, write_json
from trainer.report.figures import inline, standalone
from trainer.report.formats import finite
from trainer.report.rows import shared_rows
from trainer.report.task_report import Measure, Section, TaskReport, write_errors
from trainer.tasks.classification.regression import analysis
from trainer.tasks.classification.regression.figures import residual_figure
from trainer.tasks.classification.regression.metrics import resampled_regression, values_of

MOST_ERRORS = 20  # rows in the page
MOST_FIGURES = 6  # targets with a figure in the page
DIGITS = "{:.4g}"


class RegressionReport(TaskReport):
    """Records have their true and predicted numbers as lists `true` and `given`, and as text under the usual keys."""

    pools = True
    folders = (Path(__file__).parent, Path(__file__).parents[1])
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    @property
    def names(self) -> list[str]:
        return list(map(str, self.recipe["task"].get("targets") or ["value"]))

    @cached_property
    def _training(self) -> list[tuple[float, float]]:
        """Mean and deviation of each target in the training rows; of this split if they are not known."""
        numbers, found = self.manifest.get("data", {}).get("train", {}).get("numbers", {}), []
        for number, name in enumerate(self.names):
            true = analysis.columns(self.records, number)[0]
            facts = numbers.get(name, {"mean": float(true.mean()), "deviation": float(true.std())})
            found.append((float(facts["mean"]), float(facts["deviation"]) or 1.0))
        return found

    def read_record(self, record: Record) -> Record:
        kept = {key: value for key, value in record.items() if key not in ("value", "values")}
        for key, name in (("target", "true"), ("prediction", "given")):
            try:
                kept[name] = values_of(record[key], self.names)
            except KeyError:
                kept[name] = []
            if len(kept[name]) != len(self.names) or not all(map(finite, kept[name])):
                raise DataError(
                    f"prediction {record['id']!r}: {key} is {record[key]!r}; numbers for {', '.join(self.names)} are "
                    "expected"
                )
            kept[key] = self._text(kept[name])
        return kept

    def _text(self, values: list[float]) -> str:
        if len(self.names) == 1:
            return DIGITS.format(values[0])
        return ", ".join(f"{name} {DIGITS.format(value)}" for name, value in zip(self.names, values, strict=True))

    @cached_property
    def _targets(self) -> list[dict[str, Any]]:
        return [{"target": name, **analysis.residuals(self.records, n)} for n, name in enumerate(self.names)]

    @cached_property
    def _figures(self) -> list[str]:
        columns = self.recipe["data"].get("columns") or {}
        named = [(n, str(columns.get(name, name))) for n, name in enumerate(self.names)][:MOST_FIGURES]
        pairs = ((analysis.columns(self.records, n), name) for n, name in named)
        return [residual_figure(true, given, name) for (true, given), name in pairs]

    @cached_property
    def _worst(self) -> list[dict[str, Any]]:
        return analysis.worst_rows(self.records, [deviation for _, deviation in self._training])

    def files(self) -> list[Callable[[], list[Path]]]:
        return [self._write_residuals, lambda: write_errors(self.folder, self._worst, self._summary())]

    def _write_residuals(self) -> list[Path]:
        paths = [self.folder / "residuals.json"]
        write_json(paths[0], {"targets": self._targets})
        for number, svg in enumerate(self._figures):
            paths.append(self.folder / ("residuals.svg" if not number else f"residuals-{number + 1}.svg"))
            write_atomically(paths[-1], standalone(svg))
        return paths

    def _summary(self) -> dict[str, Any]:
        return {"rows": len(self.records), "by_length": analysis.by_length(self.records)}

    def sections(self, with_rows: bool) -> list[Section]:
        alt = [f"Prediction over truth, and residuals: {name}" for name in self.names]
        drawn = [
            inline(svg, f"residuals{number}", text)
            for number, (svg, text) in enumerate(zip(self._figures, alt, strict=False))
        ]
        summary = self._summary()
        errors = {
            **summary,
            "shown": self._worst[:MOST_ERRORS] if with_rows else [],
            "pair": self.recipe["task"].get("pair"),
            "largest": max(line["mae"] for line in summary["by_length"]) or 1.0,
            "shared": shared_rows(self),
        }
        residuals = {"targets": self._targets, "figures": drawn}
        return [
            Section("residuals", "Residuals", "residuals.html.jinja", residuals),
            Section("errors", "Largest residuals", "residual_rows.html.jinja", errors),
        ]

    def measure(self) -> Measure:
        return Measure("mae", "MAE", DIGITS, analysis.mean_absolute_error, "min")

    def resampled(self, records: Iterable[Record]) -> Resampled:
        return resampled_regression(records, self.names)

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "task.mode": "regression", "targets": sorted(self.names)}

    def goal(self) -> tuple[str, str]:
        unit = "pairs of texts" if self.recipe["task"].get("pair") else "texts"
        several = f"{len(self.names)} numbers ({', '.join(self.names[:4])}{' …' if len(self.names) > 4 else ''})"
        what = "a number" if len(self.names) == 1 else several
        return f"predict {what} for each {'pair of texts' if unit.startswith('pair') else 'text'}", unit

    def baseline(self) -> str:
        """A sentence on the error of the mean of the training rows."""
        means = np.array([mean for mean, _ in self._training])
        gaps = np.abs(np.array([record["true"] for record in self.records]) - means)
        return f"Answering the mean of the training rows every time would have an MAE of {gaps.mean():.4g}."
