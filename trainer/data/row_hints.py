"""The message about a mistake that every row of a file has: the file or the recipe is wrong, not a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.data.cleaning import BadRow
from trainer.data.columns import as_yaml, guess_columns, header_for, is_no_header
from trainer.data.discovery import Shard
from trainer.data.labels import guess_classes, hidden_difference, is_unlabeled, label_form
from trainer.recipe.sections import DataConfig

SHOWN = 8  # columns or labels that a message lists


@dataclass
class FileMistake:
    """What the rows read of one file had in common while none of them was good.

    Attributes:
        split: of the file.
        shard: the file.
        first: its first bad row.
        read: rows read.
        rows: the first few, by column.
        unknown: labels that task.labels lacks -> rows.
    """

    split: str
    shard: Shard
    first: BadRow
    read: int = 0
    rows: list[Mapping[str, object]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)

    def same(self, row: BadRow) -> bool:
        """Whether a bad row has the fault of the first one. Unknown labels are one fault, whatever they are."""
        return (row.column, _kind(row)) == (self.first.column, _kind(self.first))

    def message(self, data: DataConfig, roles: Mapping[str, Collection[str] | None]) -> str:
        """Name the mistake, what is there, and the key to change."""
        role = next((r for r in roles if data.columns.get(r, r) == self.first.column), None)
        kind, start = _kind(self.first), f"data.{self.split}: "
        if kind.startswith("is missing"):
            return start + self._missing_column(role or "", data, roles)
        if role == "label" and self._unlabeled(data):
            return start + self._no_labels(f"every row of {self.shard.name} has the label {self._label_values(data)}")
        if kind == "unknown label":
            return start + self._unknown_labels(data, roles)
        every = f"every row read of {self.shard.name} ({self.read:,}) is bad for the same reason: "
        if self.first.column is None:
            return f"{start}{every}{self.first.reason}{self.first.detail}. Check that it is {self.shard.format}"
        return (
            f"{start}{every}column {self.first.column!r} {self.first.reason}{self.first.detail}. Name the column to "
            f"read in data.columns={{{role}: COLUMN}}; columns there: {self._columns()}"
        )

    def _missing_column(self, role: str, data: DataConfig, roles: Mapping[str, Collection[str] | None]) -> str:
        names, name = [str(column) for column in self.rows[0]], self.shard.name
        if self.shard.format in ("csv", "tsv") and is_no_header(names, roles.get("label")):
            header = header_for(names, roles, data.columns)
            line = ("<TAB>" if self.shard.format == "tsv" else ",").join(header)
            return (
                f"{name} has no header: its first line is read as the names of the columns, but it looks like a row "
                f"({self._columns()}). Write a line with the names above it: {line}; or set "
                f"data.header=false and data.columns={as_yaml({r: str(i) for i, r in _placed(header, roles, data)})}"
            )
        guess = guess_columns(roles, self.rows, data.columns)
        if role == "label" and self.split != "train" and (guess is None or "label" not in guess):
            return self._no_labels(f"no row of {name} has a column {self.first.column!r} (columns: {self._columns()})")
        mapping = as_yaml(guess) if guess else "{" + ", ".join(f"{r}: COLUMN" for r in roles) + "}"
        return (
            f"no row of {name} has a column {self.first.column!r} ({self.read:,} rows read); columns there: "
            f"{self._columns()}. Set data.columns={mapping}"
        )

    def _unlabeled(self, data: DataConfig) -> bool:
        if self.unknown:
            return all(map(is_unlabeled, self.unknown))
        column = data.columns.get("label", "label")
        return all(is_unlabeled(row.get(column)) for row in self.rows)

    def _label_values(self, data: DataConfig) -> str:
        column = data.columns.get("label", "label")
        return " or ".join(dict.fromkeys(repr(row.get(column)) for row in self.rows[:SHOWN]))

    def _no_labels(self, fact: str) -> str:
        if self.split == "train":
            return f"{fact}: the split is unlabeled. Train on rows with labels"
        return (
            f"{fact}: the split is unlabeled and cannot be scored. Leave data.{self.split} out; "
            "`rankzero predict` answers such rows"
        )

    def _unknown_labels(self, data: DataConfig, roles: Mapping[str, Collection[str] | None]) -> str:
        allowed = sorted(roles["label"] or ())
        values = [value for value, _ in self.unknown.most_common()]
        there = _listed(f"{v!r} ({n:,} rows)" for v, n in self.unknown.most_common())
        start = (
            f"every label in column {self.first.column!r} of {self.shard.name} is unknown: {there}; task.labels has "
            f"{_listed(map(repr, allowed))}. "
        )
        others = {role: column for role, column in data.columns.items() if role != "label"}
        rows = [{k: v for k, v in row.items() if k != self.first.column} for row in self.rows]
        if (guess := guess_columns({"label": roles["label"]}, rows, {})) and _holds(guess["label"], rows, allowed):
            return f"{start}Column {guess['label']!r} holds such labels: set data.columns={as_yaml(others | guess)}"
        for value in values:
            for other in allowed:
                if how := hidden_difference(value, other):
                    return (
                        f"{start}{value!a} differs from {other!a} by {' and '.join(how)} only: write the "
                        "labels in task.labels as the file does"
                    )
        classes = guess_classes(values, allowed)
        pairs = classes or dict.fromkeys(values[:SHOWN], "NAME")
        return f"{start}Set task.labels={as_yaml(pairs)} (value in the file: name of the class)" + (
            "" if classes else f", or data.columns={{label: COLUMN}}; columns there: {self._columns()}"
        )

    def _columns(self) -> str:
        return _listed(repr(str(name)[:40]) for name in self.rows[0]) or "none"


def _holds(column: str, rows: Sequence[Mapping[str, object]], allowed: Collection[str]) -> bool:
    return all(label_form(row.get(column), allowed) in allowed for row in rows)


def _kind(row: BadRow) -> str:
    return "unknown label" if row.unknown is not None else row.reason


def _listed(values: Iterable[str]) -> str:
    shown = list(values)
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _placed(
    header: Sequence[str], roles: Mapping[str, Collection[str] | None], data: DataConfig
) -> list[tuple[int, str]]:
    """Position and role of the columns that hold a role."""
    columns = {data.columns.get(role, role): role for role in roles}
    return [(i, columns[name]) for i, name in enumerate(header) if name in columns]
