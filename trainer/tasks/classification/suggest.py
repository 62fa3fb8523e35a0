"""Suggest classification for rows with a text, or two, and a label, several labels or a number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.columns import FIRST_OF_PAIR, SYNONYMS
from trainer.data.labels import ClassIndex
from trainer.data.profile import Column, Table
from trainer.data.roles import Label, Labels, Number, items_of
from trainer.models.suggested import encoder_for
from trainer.task.suggestion import MOST_CLASSES, Suggestion, is_label, languages_in, renamed, text_columns
from trainer.tasks.classification.label_remarks import label_remarks

IMBALANCED = 0.1  # share of the smallest class, of an equal share, below which macro F1 selects
_PAIRS = re.compile(r"(.*?)[_ -]?(1|2|a|b|A|B)")
LISTED = 12
SEPARATORS = ("|", ";", ",")
MOST_NUMBERS = 20  # different numbers above which a column holds a scale and not classes
CLASS_NAMES = frozenset(("label", "labels", "class", "category", "target", "y", "topic", "intent", "type", "tag"))


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    target = _joined(table, columns) or _single(table, columns) or _multi(table, columns) or _regression(table, columns)
    if target is None:
        return None
    texts = _texts(table, columns, target.column)
    if not texts:
        return None
    pair = {"pair": True} if len(texts) == 2 else {}
    roles = dict(zip(("text", "text_pair"), texts, strict=False)) | {target.role: target.column}
    return Suggestion(
        fit=target.fit,
        why=target.why,
        task={"kind": "classification", **target.task, **pair},
        columns=renamed(roles),
        inputs=tuple(texts),
        metric=target.metric,
        pretrained=encoder_for(languages_in(table, texts)),
        long_rows={"truncation": "head_tail"},
        notes={"task.truncation": "head_tail: long texts keep their beginning and their end", **target.notes},
        remarks=target.remarks,
    )


@dataclass(frozen=True)
class Target:
    """What is predicted: the role, its column, the keys of `task`, the metric that selects, and what is uncertain."""

    role: str
    column: str
    fit: float
    why: str
    task: dict[str, Any]
    metric: str
    notes: dict[str, str]
    remarks: tuple[str, ...] = ()


def _single(table: Table, columns: Mapping[str, str]) -> Target | None:
    """Return the target of rows with one label."""
    if {"labels", "value"} & columns.keys():
        return None
    label, named = _label(table, columns)
    if label is None or label.kind == "list" or len(label.labels) < 2:
        return None
    if "label" not in columns and _is_scale(label):
        return None
    counts, labels = label.labels, _in_order(label)
    rare = min(counts.values()) < IMBALANCED * label.filled / len(counts)
    notes = {
        "task.labels": "value in the files: name of the class" if isinstance(labels, dict) else "the order of the ids",
        "loop.early_stopping": "selects the checkpoint; init chose macro F1, as classes differ much in size"
        if rare
        else "",
    }
    why = f"column {label.name!r} has {len(counts)} classes ({_shown(counts)})"
    return Target(
        "label",
        label.name,
        0.8 if named else 0.7,
        why,
        {"labels": labels},
        "f1" if rare else "accuracy",
        notes,
        tuple(label_remarks(label, table)),
    )


def _multi(table: Table, columns: Mapping[str, str]) -> Target | None:
    """Return the target of rows with lists of labels."""
    if "value" in columns:
        return None
    lists = [
        c for c in table.columns.values() if c.kind == "list" and not c.many and 2 <= len(c.labels) <= MOST_CLASSES
    ]
    plain = {column.name.rpartition(".")[2].strip().lower(): column for column in lists}
    usual = next(
        (plain[word] for word in Labels.synonyms.split() if word in plain), lists[0] if len(lists) == 1 else None
    )
    label = table.columns.get(columns["labels"]) if "labels" in columns else usual
    if label is None or not all(isinstance(item, str | int) for value in label.first for item in items_of(value)):
        return None
    why = f"lists in column {label.name!r} have {len(label.labels)} labels ({_shown(label.labels)})"
    task = {"mode": "multi", "labels": _in_order(label)}
    notes = {"task.labels": "the order of the ids", "task.mode": "multi: any number of labels per row"}
    return Target("labels", label.name, 0.75, why, task, "f1_micro", notes)


def _joined(table: Table, columns: Mapping[str, str]) -> Target | None:
    """Return the target of rows with several labels in one text, such as "news|sport"."""
    if columns.keys() & {"label", "labels", "value"}:
        return None
    words = Labels.synonyms.split()
    for column in table.columns.values():
        if column.kind != "text" or column.many or column.name.strip().lower() not in words:
            continue
        for mark in SEPARATORS:
            parts: Counter[str] = Counter()
            for value, count in column.values.items():
                parts.update({part.strip(): count for part in value.split(mark) if part.strip()})
            several = sum(count for value, count in column.values.items() if mark in value)
            if several >= 0.1 * column.filled and 2 <= len(parts) <= len(column.values):
                why = f"column {column.name!r} has {len(parts)} labels ({_shown(dict(parts.most_common()))})"
                task = {"mode": "multi", "labels": sorted(parts), "separator": mark}
                notes = {
                    "task.mode": "multi: any number of labels per row",
                    "task.separator": "between the labels of a row",
                }
                return Target("labels", column.name, 0.85, why, task, "f1_micro", notes)
    return None


def _regression(table: Table, columns: Mapping[str, str]) -> Target | None:
    """Return the target of rows with a number."""
    if "labels" in columns:
        return None
    numbers = [c for c in table.columns.values() if c.kind == "number" and (c.many or len(c.values) > 2)]
    plain = {column.name.rpartition(".")[2].strip().lower(): column for column in numbers}
    usual = next((plain[word] for word in Number.synonyms.split() if word in plain), None)
    broken = [column for column in numbers if not column.whole]
    column = table.columns.get(columns["value"]) if "value" in columns else usual or next(iter(broken), None)
    if column is None:
        return None
    why = f"column {column.name!r} has numbers, such as {', '.join(map(str, column.first[:3]))}"
    notes = {"task.mode": "regression: predicts a number"}
    remarks = (f"the number in column {column.name!r} is predicted; for classes: data.columns.label={column.name}",)
    return Target("value", column.name, 0.6, why, {"mode": "regression"}, "pearson", notes, remarks)


def _is_scale(label: Column) -> bool:
    """Return whether numbers are a scale, such as 0 to 100, and not the ids of classes."""
    words = set(re.split(r"\W+|_", label.name.strip().lower()))
    is_named = bool(words & CLASS_NAMES) or any(isinstance(value, ClassIndex) for value in label.first)
    return label.kind == "number" and len(label.labels) > MOST_NUMBERS and not is_named


def _shown(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in [*counts.items()][:LISTED])
    return shown + " …" * (len(counts) > LISTED)


def _label(table: Table, columns: Mapping[str, str]) -> tuple[Column | None, bool]:
    """Return the column of the labels, and whether its name says so."""
    if "label" in columns:
        return table.columns.get(columns["label"]), True
    free = [c for c in table.columns.values() if c.name not in columns.values() and is_label(c, table)]
    plain = {column.name.rpartition(".")[2].strip().lower(): column for column in reversed(free)}
    words = Label(()).synonyms.split()
    for word in words:
        if word in plain:
            return plain[word], True
    for column in free:
        if set(re.split(r"\W+|_", column.name.lower())) & set(words):
            return column, True
    shortest = sorted(free, key=lambda column: len(column.labels))
    return (shortest[0] if shortest else None), False


def _texts(table: Table, columns: Mapping[str, str], label: str) -> list[str]:
    """Return the columns of the text, and of the second one of a pair."""
    if "text" in columns:
        return [columns[role] for role in ("text", "text_pair") if role in columns]
    free = [column for column in text_columns(table) if column.name != label]
    if not free:
        return []
    names = [column.name for column in table.columns.values() if column in free]
    for first in names:
        for second in names:
            if _is_pair(first, second):
                return [first, second]
    plain = {name.strip().lower(): name for name in names}
    distinct = [column for column in free if column.many or len(column.values) > 0.2 * column.filled] or free
    usual = next((plain[word] for word in SYNONYMS["text"].split() if word in plain), None)
    long = distinct[0]
    return [usual if usual and table.columns[usual].characters > 0.5 * long.characters else long.name]


def _is_pair(first: str, second: str) -> bool:
    """Return whether two names are those of a pair: sentence_A and sentence_B, premise and hypothesis."""
    one, two = _PAIRS.fullmatch(first), _PAIRS.fullmatch(second)
    if one and two and one[1] and one[1] == two[1] and one[2].lower() in "1a" and two[2].lower() in "2b":
        return one[2].lower() < two[2].lower()
    words = [name.strip().lower() for name in (first, second)]
    return words[0] in FIRST_OF_PAIR.split() and words[1] in SYNONYMS["text_pair"].split()


def _in_order(label: Column) -> list[str] | dict[str, str]:
    """Return the labels in the order of their ids: of a class index as listed, numbers by value, others by name."""
    index = next((value for value in label.first if isinstance(value, ClassIndex)), None)
    if index is not None:
        return list(index.names)
    values: Any = label.labels
    if all(value.removeprefix("-").isdecimal() for value in values):
        return {value: value for value in sorted(values, key=int)}
    return sorted(values)
