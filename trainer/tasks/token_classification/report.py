"""Report and model card of token classifiers: scores by type, confusion of types, and errors by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import DataError
from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.files import write_json
from trainer.report.confusion_matrix import draw_confusion, matrix_values
from trainer.report.formats import label
from trainer.report.rows import shared_rows
from trainer.report.task_report import NOTHING, Measure, Section, TaskReport, write_errors
from trainer.tasks.token_classification.errors import KINDS, NONE, confusion, paired
from trainer.tasks.token_classification.metrics import (
    PREDICTED,
    RIGHT,
    TRUE,
    counts,
    f_scores,
    resampled_entities,
    summary,
)

PIPELINE = """\
from transformers import pipeline

find = pipeline("token-classification", model="{path}", aggregation_strategy="first"{stride})
print(find("A text."))  # entities with start, end, type and score; rankzero also checks that the tags of a text fit"""
EXAMPLES = 5  # errors of each kind in the page
RIGHT_ROWS = 4  # rows without an error in the page
AROUND = 90  # characters before and after an error that the page shows
FEW_TYPES = 6  # are named in a sentence
MEANINGS = {
    "boundary": "The type is right, and the boundaries are not.",
    "type": "An entity of another type is there.",
    "missed": "No entity was predicted there.",
    "spurious": "There is no entity.",
}


class TokenClassificationReport(TaskReport):
    """`target` and `prediction` of a record are lists of entities."""

    folders = (Path(__file__).parent,)
    auto_class = "AutoModelForTokenClassification"
    pipeline = "token-classification"
    long_texts = "are read in windows that overlap"

    @property
    def types(self) -> list[str]:
        labels = self.recipe["task"].get("labels") or []
        return list(dict.fromkeys(map(str, labels.values() if isinstance(labels, dict) else labels)))

    def usage(self, path: str, pooling: str | None) -> str:
        overlap = int(self.recipe["data"]["max_length"] * self.recipe["task"].get("overlap", 0))
        return PIPELINE.format(path=path, stride=f", stride={overlap}" if overlap else "")

    def read_record(self, record: Record) -> Record:
        for key in ("target", "prediction"):
            if not isinstance(record[key], list) or not all(self._is_entity(entity) for entity in record[key]):
                raise DataError(
                    f"prediction {record['id']!r}: {key} is {str(record[key])[:80]}; a list of entities with start, "
                    f"end and label is expected, the label one of {', '.join(self.types)}"
                )
        return dict(record)

    def shown(self, value: Any, text: str) -> str:
        """Return the words of entities with their types: "Ada Lovelace (PER), London (LOC)"."""
        return ", ".join(f"{text[e['start'] : e['end']]} ({e['label']})" for e in value) or NOTHING

    def resampled(self, records: Iterable[Record]) -> Resampled:
        return resampled_entities(records, self.types)

    def row_score(self, record: Record) -> float:
        """Return the F1 of the entities of a row, 1 where none is true and none was predicted."""
        return self.measure().score([record]) if record["target"] or record["prediction"] else 1.0

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "types": sorted(self.types)}

    def _is_entity(self, value: Any) -> bool:
        if not isinstance(value, dict) or value.get("label") not in self.types:
            return False
        return all(type(value.get(key)) is int for key in ("start", "end"))

    _counts = cached_property(lambda self: counts(self.records, self.types))
    _matrix = cached_property(lambda self: confusion(self.records, self.types))

    @cached_property
    def _errors(self) -> list[dict[str, Any]]:
        """All errors in the order of the corpus."""
        return [
            {"id": record["id"], "kind": pair.kind, "true": pair.true, "predicted": pair.predicted}
            | {"text": record["input"]}
            for record in self.records
            for pair in paired(record["target"], record["prediction"])
            if pair.kind != "right"
        ]

    def _by_type(self) -> list[dict[str, Any]]:
        sums = self._counts.sum(0)
        columns = zip(self.types, *f_scores(sums), sums, strict=True)
        return [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f)}
            | {"true": int(n[TRUE]), "predicted": int(n[PREDICTED]), "right": int(n[RIGHT])}
            for name, p, r, f, n in columns
        ]

    def _kinds(self) -> list[dict[str, Any]]:
        found = [error["kind"] for error in self._errors]
        return [{"kind": kind, "count": found.count(kind), "meaning": MEANINGS[kind]} for kind in KINDS]

    # -- files and sections --------------------------------------------------------------------------------------------

    def files(self) -> list[Callable[[], list[Path]]]:
        return [self._write_entities, self._write_errors, self._write_picture]

    def _write_entities(self) -> list[Path]:
        path = self.folder / "entities.json"
        matrix = {"labels": [*self.types, NONE], "counts": self._matrix}
        write_json(path, {"types": self._by_type(), "confusion": matrix})
        return [path]

    def _write_picture(self) -> list[Path]:
        path, counts = self.folder / "confusion_matrix.png", np.array(self._matrix)
        draw_confusion({"labels": [*self.types, NONE], **matrix_values(counts, counts.sum(1))}, path, "Entities")
        return [path]

    def _write_errors(self) -> list[Path]:
        kinds = {line["kind"]: line["count"] for line in self._kinds()}
        by_type = {
            name: {kind: sum(_type_of(e) == name and e["kind"] == kind for e in self._errors) for kind in KINDS}
            for name in self.types
        }
        summary = {"rows": len(self.records), "errors": len(self._errors), "by_kind": kinds, "by_type": by_type}
        return write_errors(self.folder, self._errors, summary)

    def sections(self, with_rows: bool) -> list[Section]:
        total = self._counts.sum((0, 1))
        data = {
            "types": self._by_type(),
            "right": int(total[RIGHT]),
            "true": int(total[TRUE]),
            "predicted": int(total[PREDICTED]),
        }
        matrix = {"labels": [*self.types, NONE], "counts": self._matrix, "none": NONE}
        groups = [(line, self._examples(line["kind"]) if with_rows else []) for line in self._kinds()]
        errors = {
            "groups": groups,
            "largest": max(1, *(line["count"] for line, _ in groups)),
            "right": [_row(record) for record in self._right_rows()] if with_rows else [],
            "shared": shared_rows(self),
        }
        return [
            Section("entities", "Entities by type", "entities.html.jinja", data),
            Section("confusion", "Confusion of types", "types.html.jinja", matrix),
            Section("errors", "Errors by kind", "kinds.html.jinja", errors),
        ]

    def _examples(self, kind: str) -> list[dict[str, Any]]:
        """Return a few errors of a kind, spread evenly over the split, each with the text around it."""
        found = [error for error in self._errors if error["kind"] == kind]
        step = max(1, len(found) // EXAMPLES)
        return [_around(error) for error in found[::step][:EXAMPLES]]

    def _right_rows(self) -> list[Record]:
        right = [r for r in self.records if r["target"] and r["target"] == r["prediction"]]
        return sorted(right, key=lambda record: -len(record["target"]))[:RIGHT_ROWS]

    def measure(self) -> Measure:
        return Measure("f1", "Entity F1", "{:.1%}", lambda rows: summary(counts(rows, self.types).sum(0))["f1"])

    def goal(self) -> tuple[str, str]:
        names = f" ({', '.join(map(label, self.types))})" if len(self.types) <= FEW_TYPES else ""
        count = f"{len(self.types)} types" if len(self.types) > 1 else "one type"
        return f"find entities of {count}{names} in texts", "tagged texts"

    def row_groups(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Return nothing: the counts are those of entities, not of rows."""
        return {}


def _type_of(error: Mapping[str, Any]) -> str:
    """Return the type of the true entity, or of the predicted one if there is no true one."""
    return str((error["true"] or error["predicted"])["label"])


def marked(text: str, entities: Sequence[Mapping[str, Any]], begin: int = 0, end: int | None = None) -> list[list[str]]:
    """Return the parts of a text as [text, type], with an empty type between entities."""
    stop, at, parts = len(text) if end is None else end, begin, []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        first, last = max(at, entity["start"]), min(stop, entity["end"])
        if first < last:
            parts += [[text[at:first], ""], [text[first:last], str(entity["label"])]]
            at = last
    return [part for part in [*parts, [text[at:stop], ""]] if part[0]]


def _around(error: Mapping[str, Any]) -> dict[str, Any]:
    text, entities = error["text"], [e for e in (error["true"], error["predicted"]) if e is not None]
    begin = max(0, min(e["start"] for e in entities) - AROUND)
    end = min(len(text), max(e["end"] for e in entities) + AROUND)
    lines = [
        (name, mark, marked(text, [] if entity is None else [entity], begin, end))
        for name, mark, entity in (("True", "", error["true"]), ("Predicted", "predicted", error["predicted"]))
    ]
    return {"lines": lines, "cut": (begin > 0, end < len(text)), "note": error["id"]}


def _row(record: Record) -> dict[str, Any]:
    return {
        "lines": [("Predicted", "predicted", marked(record["input"], record["prediction"]))],
        "cut": (False, False),
        "note": record["id"],
    }
