"""Report and model card of classifiers: confusion matrix, calibration and errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.files import write_atomically, write_json
from trainer.report import confusion_matrix
from trainer.report.formats import label, without_surrogates
from trainer.report.rows import shared_rows
from trainer.report.task_report import Measure, Section, TaskReport, write_errors
from trainer.tasks.classification import analysis, figures
from trainer.tasks.classification.metrics import resampled_classes

PIPELINE = """\
from transformers import pipeline

classify = pipeline("text-classification", model="{path}", top_k=None)
print(classify({text}, truncation=True))"""
POOLED = """\
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig

model = SentenceTransformer("{path}")  # the trunk, its pooling, and the head of the classifier
logits = torch.tensor(model.encode([{text}]))
print(AutoConfig.from_pretrained("{path}").id2label, logits.softmax(-1))
vectors = SentenceTransformer(modules=list(model)[:2]).encode([{text}])  # without the head"""
MOST_ERRORS = 20  # wrong rows in the page
MOST_LINES = 50  # classes in a table by class
FEW_ROWS = 20  # an error rate of fewer rows does not set the scale of the bars
FEW_CLASSES = 4  # are named in a sentence


class ClassificationReport(TaskReport):
    """Of the probabilities, which take 100 KB a row with 1,000 classes, records keep that of the predicted class only.

    It is their `confidence`; `labels` are the names of the classes, one list for all records.
    """

    pools = True
    folders = (Path(__file__).parent,)
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    def usage(self, path: str, pooling: str | None) -> str:
        pair = bool(self.recipe["task"].get("pair"))
        if pooling is None:
            text = '{"text": "A text.", "text_pair": "Another."}' if pair else '["A text."]'
            return PIPELINE.format(path=path, text=text)
        return POOLED.format(path=path, text='("A text.", "Another.")' if pair else '"A text."')

    @property
    def names(self) -> list[str]:
        """Names of the classes in the order of their ids; of the recipe until a record is read."""
        if self.records:
            found: list[str] = self.records[0]["labels"]
            return found
        labels = self.recipe["task"].get("labels") or []
        return list(dict.fromkeys(map(str, labels.values() if isinstance(labels, dict) else labels)))

    def read_record(self, record: Record) -> Record:
        where = f"prediction {record['id']!r}"
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
        return {**super().read_record(kept), "confidence": float(shares[record["prediction"]]), "labels": names}

    _matrix = cached_property(lambda self: analysis.confusion(self.records, self.names))
    _by_class = cached_property(lambda self: analysis.classification_report(self.records, self.names))
    _calibration = cached_property(lambda self: analysis.calibration(self.records))
    _wrong = cached_property(lambda self: analysis.wrong_rows(self.records))
    _rates = cached_property(lambda self: analysis.error_rates(self.records, self.names))

    def files(self) -> list[Callable[[], list[Path]]]:
        return [
            lambda: write_confusion(self._matrix, *self._by_class, self.folder),
            lambda: [_write(self.folder / "calibration.json", self._calibration)],
            lambda: write_errors(self.folder, self._wrong, self._rates),
        ]

    def sections(self, with_rows: bool) -> list[Section]:
        matrix, classes, rates = self._matrix, self._by_class[0]["classes"], self._rates
        occurring = [row for row in classes if row["precision"] is not None]
        confusion = {
            **confusion_matrix.most_confused(matrix),
            "total": len(self.names),
            "worst": analysis.worst_confusion(matrix),
            "classes": _worst_lines(occurring, "f1-score", 1),
            "absent": [row["label"] for row in classes if not row["support"]],
        }
        lines = [row for row in (*rates["by_length"], *rates["by_class"]) if row["rows"] >= FEW_ROWS]
        errors = {
            **rates,
            "shown": self._wrong[:MOST_ERRORS] if with_rows else [],
            "pair": self.recipe["task"].get("pair"),
            "by_class": _worst_lines(rates["by_class"], "error_rate", -1),
            "largest": max(line["error_rate_ci95"][1] for line in lines or rates["by_class"]),
            "shared": shared_rows(self),
            "classes": len(self.names),
        }
        reliability = {**self._calibration, "svg": figures.reliability_figure(self._calibration)}
        return [
            Section("confusion", "Confusion matrix", "confusion.html.jinja", confusion),
            Section("calibration", "Calibration", "calibration.html.jinja", reliability),
            Section("errors", "Errors worth reading", "errors.html.jinja", errors),
        ]

    def measure(self) -> Measure:
        return Measure("accuracy", "Accuracy", "{:.1%}", analysis.accuracy)

    def resampled(self, records: Iterable[Record]) -> Resampled:
        return resampled_classes(records, self.names)

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "task.mode": "single", "classes": sorted(self.names)}

    def goal(self) -> tuple[str, str]:
        names = f" ({', '.join(map(label, self.names))})" if len(self.names) <= FEW_CLASSES else ""
        unit = "labelled pairs of texts" if self.recipe["task"].get("pair") else "labelled texts"
        return f"classify texts into {len(self.names)} classes{names}", unit

    def baseline(self) -> str:
        name, most = Counter(record["target"] for record in self.records).most_common(1)[0]
        return f"Answering “{label(name)}” every time would be right for {most / len(self.records):.1%} of them."

    def row_groups(self, rows: Mapping[str, int]) -> dict[str, int]:
        labels, groups = self.recipe["task"].get("labels"), Counter[str]()
        for value, number in rows.items():
            groups[str(labels.get(value, value) if isinstance(labels, dict) else value)] += number
        return dict(groups)


def write_confusion(matrix: dict[str, Any], by_class: dict[str, Any], table: str, folder: Path) -> list[Path]:
    """Write confusion_matrix.json and .png, classification_report.json and .txt."""
    names = ("confusion_matrix.json", "confusion_matrix.png", "classification_report.json", "classification_report.txt")
    files = [folder / name for name in names]
    lines = (f'  "{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n  ]" for key, rows in matrix.items())
    write_atomically(files[0], "{\n" + ",\n".join(lines) + "\n}\n")  # a line for each class, not for each number
    write_json(files[2], by_class)
    write_atomically(files[3], without_surrogates(table))
    confusion_matrix.draw_confusion(matrix, files[1])
    return files


def _write(path: Path, value: Any) -> Path:
    write_json(path, value)
    return path


def _worst_lines(lines: list[dict[str, Any]], key: str, sign: int) -> dict[str, Any]:
    """The lines of a table by class with the lowest `sign` * value of `key`, in their order; all where they are few."""
    ranked = sorted(range(len(lines)), key=lambda n: sign * lines[n][key])[:MOST_LINES]
    return {"lines": [lines[n] for n in sorted(ranked)], "total": len(lines)}


def _is_share(value: Any) -> bool:
    # sums of rounded numbers may pass 1 by a little
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e-6 <= value <= 1 + 1e-6
