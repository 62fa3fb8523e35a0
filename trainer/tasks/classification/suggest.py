"""Suggest classification for rows with a text, or two, and a label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.data.columns import FIRST_OF_PAIR, SYNONYMS
from trainer.data.labels import ClassIndex
from trainer.data.profile import Column, Table
from trainer.data.roles import Label
from trainer.models.suggested import ENCODER
from trainer.task.suggestion import Suggestion, is_label, renamed, text_columns

IMBALANCED = 0.1  # share of the smallest class, of an equal share, below which macro F1 selects
_PAIRS = re.compile(r"(.*?)[_ -]?(1|2|a|b|A|B)")
LISTED = 12


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table.

    Args:
        table: the training rows.
        columns: roles that the user has set.
    """
    label, named = _label(table, columns)
    if label is None:
        return None
    texts = _texts(table, columns, label.name)
    if not texts:
        return None
    counts = label.labels
    labels = _in_order(label)
    roles = dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": label.name}
    rare = min(counts.values()) < IMBALANCED * label.filled / len(counts)
    shown = ", ".join(f"{name} {count:,}" for name, count in [*counts.items()][:LISTED])
    task = {"kind": "classification", "labels": labels} | ({"pair": True} if len(texts) == 2 else {})
    notes = {
        "task.labels": "value in the files: name of the class" if isinstance(labels, dict) else "the order of the ids",
        "loop.early_stopping": "selects the checkpoint; macro F1, because classes differ much in size" if rare else "",
        "model.pooling": "mean of all tokens; auto: the head of the architecture",
    }
    return Suggestion(
        fit=0.8 if named else 0.7,
        why=f"column {label.name!r} has {len(counts)} classes ({shown}{' …' if len(counts) > LISTED else ''})",
        task=task,
        columns=renamed(roles),
        inputs=tuple(texts),
        metric="f1" if rare else "accuracy",
        pretrained=ENCODER,
        model={"pooling": "mean"},
        notes=notes,
    )


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
