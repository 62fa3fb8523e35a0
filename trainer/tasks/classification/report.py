"""Report and model card of classifiers: confusion matrix, calibration and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import DataError
from trainer.evaluation.predictions import Record
from trainer.report.formats import label, preview
from trainer.report.rows import shared_rows
from trainer.report.task_report import Measure, Section, TaskReport
from trainer.rundir import write_json
from trainer.tasks.classification.calibration import calibration, reliability_figure
from trainer.tasks.classification.confusion import classification_report, confusion, most_confused, write_confusion
from trainer.tasks.classification.errors import accuracy, error_rates, write_errors, wrong_rows

MOST_ERRORS = 20  # wrong rows in the page
MOST_LINES = 50  # classes in a table by class
FEW_ROWS = 20  # an error rate of fewer rows does not set the scale of the bars
FEW_CLASSES = 4  # are named in a sentence


class ClassificationReport(TaskReport):
    """Of the probabilities, which take 100 KB a row with 1,000 classes, records keep that of the predicted class only.

    It is their `confidence`; `labels` are the names of the classes, one list for all records.
    """

    folders = (Path(__file__).parent,)
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    @property
    def names(self) -> list[str]:
        """Names of the classes in the order of their ids; of the recipe until a record is read."""
        if self.records:
            found: list[str] = self.records[0]["labels"]
            return found
        labels = self.recipe["task"].get("labels") or []
        return list(dict.fromkeys(map(str, labels.values() if isinstance(labels, dict) else labels)))

    def read_record(self, record: Record) -> Record:
        record, where = super().read_record(record), f"prediction {record['id']!r}"
        shares = record.get("probabilities")
        if not isinstance(shares, Mapping) or not all(map(_is_share, shares.values())):
            raise DataError(f"{where}: probabilities is {shares!r}; a number from 0 to 1 for each label is expected")
        names = self.names if self.records else list(shares)
        if shares.keys() != set(names):
            raise DataError(f"{where} has labels {', '.join(shares)}; {', '.join(names)} are expected")
        for key in ("prediction", "target"):
            if record[key] not in shares:
                raise DataError(f"{where}: {key} {record[key]!r} has no probability; labels: {', '.join(shares)}")
        kept = {key: value for key, value in record.items() if key != "probabilities"}
        return {**kept, "confidence": float(shares[record["prediction"]]), "labels": names}

    @cached_property
    def _matrix(self) -> dict[str, Any]:
        return confusion(self.records, self.names)

    @cached_property
    def _by_class(self) -> tuple[dict[str, Any], str]:
        return classification_report(self.records, self.names)

    @cached_property
    def _calibration(self) -> dict[str, Any]:
        return calibration(self.records)

    @cached_property
    def _wrong(self) -> list[dict[str, Any]]:
        return wrong_rows(self.records)

    @cached_property
    def _rates(self) -> dict[str, Any]:
        return error_rates(self.records, self.names)

    def files(self) -> list[Callable[[], list[Path]]]:
        return [
            lambda: write_confusion(self._matrix, self._by_class, self.folder),
            self._write_calibration,
            lambda: write_errors(self._wrong, self._rates, self.folder),
        ]

    def _write_calibration(self) -> list[Path]:
        path = self.folder / "calibration.json"
        write_json(path, self._calibration)
        return [path]

    def sections(self, with_rows: bool) -> list[Section]:
        found = self._calibration
        filled = [b for b in found["bins"] if b["rows"]]
        reliability = {**found, "filled": filled, "svg": reliability_figure(found)}
        return [
            Section("confusion", "Confusion matrix", "confusion.html.jinja", self._confusion_data()),
            Section("calibration", "Calibration", "calibration.html.jinja", reliability),
            Section("errors", "Errors worth reading", "errors.html.jinja", self._error_data(with_rows)),
        ]

    def _confusion_data(self) -> dict[str, Any]:
        """The matrix, its most frequent confusion, and the scores of each class; bounded for any number of classes."""
        wrong = np.array(self._matrix["counts"], dtype=np.int64)
        np.fill_diagonal(wrong, 0)
        true, predicted = divmod(int(wrong.argmax()), len(self.names))
        worst = int(wrong[true, predicted]), self._matrix["row_shares"][true][predicted]
        classes = self._by_class[0]["classes"]
        return {
            **most_confused(self._matrix),
            "total": len(self.names),
            "worst": (*worst, self.names[true], self.names[predicted]) if worst[0] else None,
            "classes": _worst_lines([line for line in classes if line["precision"] is not None], "f1-score", 1),
            "absent": [line["label"] for line in classes if not line["support"]],
        }

    def _error_data(self, with_rows: bool) -> dict[str, Any]:
        pair, rates = bool(self.recipe["task"].get("pair")), self._rates
        shown = [
            {**row, "parts": row["text"].split("\t", 1) if pair else [row["text"]], "preview": preview(row["text"])}
            for row in (self._wrong[:MOST_ERRORS] if with_rows else [])
        ]
        lines = [row for row in (*rates["by_length"], *rates["by_class"]) if row["rows"] >= FEW_ROWS]
        return {
            **rates,
            "shown": shown,
            "by_class": _worst_lines(rates["by_class"], "error_rate", -1),
            "largest": max(line["error_rate_ci95"][1] for line in lines or rates["by_class"]),
            "shared": shared_rows(self),
            "classes": len(self.names),
        }

    def measure(self) -> Measure:
        return Measure("accuracy", "Accuracy", "{:.1%}", accuracy)

    def goal(self) -> tuple[str, str]:
        names = f" ({', '.join(map(label, self.names))})" if len(self.names) <= FEW_CLASSES else ""
        unit = "labelled pairs of texts" if self.recipe["task"].get("pair") else "labelled texts"
        return f"tell {len(self.names)} classes of texts apart{names}", unit

    def baseline(self) -> str:
        name, most = Counter(record["target"] for record in self.records).most_common(1)[0]
        return f"Answering “{label(name)}” every time would be right for {most / len(self.records):.1%} of them."

    def row_groups(self, rows: Mapping[str, int]) -> dict[str, int]:
        labels, groups = self.recipe["task"].get("labels"), Counter[str]()
        for value, number in rows.items():
            groups[str(labels.get(value, value) if isinstance(labels, dict) else value)] += number
        return dict(groups)


def _worst_lines(lines: list[dict[str, Any]], key: str, sign: int) -> dict[str, Any]:
    """The lines of a table by class with the lowest `sign` * value of `key`, in their order; all where they are few."""
    ranked = sorted(range(len(lines)), key=lambda n: sign * lines[n][key])[:MOST_LINES]
    return {"lines": [lines[n] for n in sorted(ranked)], "total": len(lines)}


def _is_share(value: Any) -> bool:
    # sums of rounded numbers may pass 1 by a little
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e-6 <= value <= 1 + 1e-6
