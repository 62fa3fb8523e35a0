"""Report and model card of classifiers with several labels per row: scores and errors by label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.files import read_json, write_json
from trainer.report.formats import label
from trainer.report.rows import shared_rows
from trainer.report.task_report import Measure, Section, TaskReport, write_errors
from trainer.tasks.classification.multi_label import analysis
from trainer.tasks.classification.multi_label.metrics import resampled_labels
from trainer.tasks.classification.multi_label.thresholds import checked_thresholds

MOST_ERRORS = 20  # wrong rows in the page
MOST_LINES = 50  # labels in the table
FEW_LABELS = 4  # are named in a sentence
NONE = "(none)"  # an empty set of labels as text


class MultiLabelReport(TaskReport):
    """Records have their true and predicted labels as lists `true` and `given`, and as text under the usual keys."""

    pools = True
    folders = (Path(__file__).parent, Path(__file__).parents[1])
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    @property
    def names(self) -> list[str]:
        labels = self.recipe["task"].get("labels") or []
        return list(dict.fromkeys(map(str, labels.values() if isinstance(labels, dict) else labels)))

    @cached_property
    def thresholds(self) -> dict[str, float]:
        own = self.recipe["task"].get("thresholds")
        if isinstance(own, float):
            return dict.fromkeys(self.names, own)
        if isinstance(own, Mapping):
            return checked_thresholds({"thresholds": own}, self.names)
        found = (read_json(self.run.model / "config.json") or {}).get("calibration")
        return checked_thresholds(found if isinstance(found, Mapping) else {}, self.names)

    def read_record(self, record: Record) -> Record:
        names = self.names
        for key in ("target", "prediction"):
            if not isinstance(record[key], list) or not set(record[key]) <= set(names):
                raise DataError(
                    f"prediction {record['id']!r}: {key} is {record[key]!r}; a list of {', '.join(names)} is expected"
                )
        shares = record.get("probabilities")
        if not isinstance(shares, Mapping) or shares.keys() != set(names):
            raise DataError(f"prediction {record['id']!r}: probabilities of exactly {', '.join(names)} are expected")
        kept = {key: value for key, value in record.items() if key not in ("probabilities", "labels")}
        texts = {key: ", ".join(record[key]) or NONE for key in ("target", "prediction")}
        lists = {"true": record["target"], "given": record["prediction"]}
        return {**kept, **texts, **lists, "first": max(names, key=lambda name: shares[name])}

    _labels = cached_property(lambda self: analysis.label_report(self.records, self.names, self.thresholds))
    _wrong = cached_property(lambda self: analysis.wrong_rows(self.records))
    _rates = cached_property(lambda self: analysis.error_rates(self.records))

    def files(self) -> list[Callable[[], list[Path]]]:
        def report() -> list[Path]:
            write_json(self.folder / "label_report.json", {"labels": self._labels})
            return [self.folder / "label_report.json"]

        return [report, lambda: write_errors(self.folder, self._wrong, {**self._rates, "by_label": self._labels})]

    def sections(self, with_rows: bool) -> list[Section]:
        worst = sorted(self._labels, key=lambda line: float(line["f1-score"]))[:MOST_LINES]
        kept = {line["label"] for line in worst}
        lines = [line for line in self._labels if line["label"] in kept]
        auto, validation = (
            self.recipe["task"].get("thresholds") in (None, "auto"),
            self.recipe["data"].get("validation"),
        )
        labels = {"lines": lines, "total": len(self.names), "auto": auto and validation is not None}
        rates = [*self._rates["by_length"], *self._rates["by_labels"]]
        errors = {
            **self._rates,
            "shown": self._wrong[:MOST_ERRORS] if with_rows else [],
            "pair": self.recipe["task"].get("pair"),
            "largest": max(line["error_rate_ci95"][1] for line in rates),
            "shared": shared_rows(self),
        }
        return [
            Section("labels", "By label", "labels.html.jinja", labels),
            Section("errors", "Errors worth reading", "label_errors.html.jinja", errors),
        ]

    def measure(self) -> Measure:
        return Measure("subset_accuracy", "Subset accuracy", "{:.1%}", analysis.subset_accuracy)

    def resampled(self, records: Iterable[Record]) -> Resampled:
        return resampled_labels(records, self.names)

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "task.mode": "multi", "labels": sorted(self.names)}

    def goal(self) -> tuple[str, str]:
        names = f" ({', '.join(map(label, self.names))})" if len(self.names) <= FEW_LABELS else ""
        unit = "pairs of texts" if self.recipe["task"].get("pair") else "texts"
        return f"give texts any of {len(self.names)} labels{names}", unit

    def baseline(self) -> str:
        labels, share = analysis.most_frequent(self.records)
        answer = ", ".join(map(label, labels)) or "no label"
        return f"Answering “{answer}” every time would be exactly right for {share:.1%} of them."

    def row_groups(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Labels overlap, so that their rows do not add up to all rows."""
        return {}
