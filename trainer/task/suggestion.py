"""What a task suggests for the rows of a file, for `rankzero init`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.profile import Column, Table

MOST_CLASSES = 1000
Values = dict[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """The parts of a recipe that depend on the task and on the columns of a file.

    Attributes:
        fit: how well the task fits the rows, 0 to 1. The best one is taken.
        why: a sentence about the columns.
        task: the `task` section.
        columns: role -> column.
        inputs: columns whose lengths decide `data.max_length`.
        metric: selects the checkpoint.
        pretrained: name of a pretrained model; None to train from random weights.
        model: further keys of the `model` section, and all of them for random weights.
        tokenizer: the `tokenizer` section, if one is trained.
        optim: keys of `optim` that the task sets.
        evaluation: keys of `evaluation` that the task sets.
        long_rows: keys of `task` for rows of which many are longer than the model reads.
        markup: HTML may be removed from the texts, because no position in them is part of the rows.
        packed: rows are packed into sequences of data.max_length tokens.
        windows: longer rows are read in overlapping windows, and not cut.
        notes: comments by dotted key.
        remarks: sentences for the user about what is uncertain, and how to change it.
    """

    fit: float
    why: str
    task: Values
    columns: dict[str, str]
    inputs: tuple[str, ...]
    metric: str = "loss"
    pretrained: str | None = None
    model: Values = field(default_factory=dict)
    tokenizer: Values | None = None
    optim: Values = field(default_factory=dict)
    evaluation: Values = field(default_factory=dict)
    long_rows: Values = field(default_factory=dict)
    markup: bool = True
    packed: bool = False
    windows: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def renamed(columns: Mapping[str, str]) -> dict[str, str]:
    """Return `data.columns`: the roles whose column has another name."""
    return {role: column for role, column in columns.items() if role != column}


def is_label(column: Column, table: Table) -> bool:
    """Return whether a column may hold classes: few values, each of which occurs in several rows."""
    classes = len(column.labels)
    if column.kind not in ("text", "number") or column.many or not column.whole:
        return False
    enough = column.filled >= 3 * classes or (classes <= 5 and column.filled >= 2 * classes)
    return 2 <= classes <= MOST_CLASSES and enough


def text_columns(table: Table) -> list[Column]:
    """Return the columns of texts, those with the most words first. An id or a URL is one word."""
    texts = [column for column in table.columns.values() if column.kind == "text" and column.texts]
    return sorted(texts, key=lambda column: (-column.words, -column.characters))


def languages_in(table: Table, columns: Sequence[str]) -> dict[str, float]:
    """Return code -> mean share of a language in some columns. Empty if the languages are not clear."""
    found = [table.columns[name].languages for name in columns if name in table.columns]
    found = [languages for languages in found if languages]
    codes = dict.fromkeys(code for languages in found for code in languages)
    shares = {code: sum(one.get(code, 0.0) for one in found) / len(found) for code in codes}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
