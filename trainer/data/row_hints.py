"""Messages about a mistake that every row of a file has: the file or the recipe is wrong, not a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.data.cleaning import BadRow
from trainer.data.columns import as_yaml, guess_columns, header_for, is_no_header
from trainer.data.discovery import Shard
from trainer.data.labels import guess_classes, is_unlabeled, look_alike
from trainer.data.paths import flat
from trainer.data.roles import Label, Labels, Roles
from trainer.data.sources import Row
from trainer.recipe.sections import DataConfig

SHOWN = 8  # columns or labels that a message lists
KEPT_ROWS = 20
KEPT_LABELS = 100


@dataclass
class FileMistake:
    """What the rows of a file have in common, as long as all of them are bad for the same reason.

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

    def add(self, row: Row, bad: BadRow, read: int) -> bool:
        """Add a bad row. Return whether it is bad for the same reason. All unknown labels are one reason."""
        if (bad.column, _kind(bad)) != (self.first.column, _kind(self.first)):
            return False
        self.read = read
        if len(self.rows) < KEPT_ROWS:
            self.rows.append(flat(row.values))
        if bad.unknown is not None and (bad.unknown in self.unknown or len(self.unknown) < KEPT_LABELS):
            self.unknown[bad.unknown] += 1
        return True

    def message(self, data: DataConfig, roles: Roles) -> str:
        """Return the mistake, what the file has, and the key to change."""
        role = next((name for name in roles if data.columns.get(name, name) == self.first.column), "")
        kind, column = _kind(self.first), repr(self.first.column)
        every = f"every row read of {self.shard.name} ({self.read:,}) is bad for the same reason: "
        if kind.startswith("is missing"):
            text = self._missing_column(role, data, roles)
        elif isinstance(roles.get(role), Label) and all(map(is_unlabeled, self.unknown or map(self._raw, self.rows))):
            values = " or ".join(dict.fromkeys(repr(self._raw(row)) for row in self.rows[:SHOWN]))
            text = self._no_labels(f"every row of {self.shard.name} has the label {values}")
        elif kind == "unknown label":
            text = self._unknown_labels(role, data, roles)
        elif self.first.column is None:
            text = f"{every}{self.first.reason}{self.first.detail}. Check that it is {self.shard.format}"
        else:
            text = (
                f"{every}column {column} {self.first.reason}{self.first.detail}. Name the column to read in "
                f"data.columns={{{role}: COLUMN}}; columns there: {self._columns()}"
            )
        return f"data.{self.split}: {text}"

    def _raw(self, row: Mapping[str, object]) -> object:
        return row.get(str(self.first.column))

    def _missing_column(self, role: str, data: DataConfig, roles: Roles) -> str:
        names, name = [str(column) for column in self.rows[0]], self.shard.name
        if self.shard.format in ("csv", "tsv") and is_no_header(names, roles):
            header = header_for(names, roles, data.columns)
            positions = {r: str(header.index(c)) for r in roles if (c := data.columns.get(r, r)) in header}
            line = ("<TAB>" if self.shard.format == "tsv" else ",").join(header)
            return (
                f"{name} has no header: its first line is read as the names of the columns, but it looks like a row "
                f"({self._columns()}). Write a line with the names above it: {line}; or set "
                f"data.header=false and data.columns={as_yaml(positions)}"
            )
        guess = guess_columns(roles, self.rows, data.columns)
        if isinstance(roles.get(role), Label) and self.split != "train" and (guess is None or role not in guess):
            return self._no_labels(f"no row of {name} has a column {self.first.column!r} (columns: {self._columns()})")
        mapping = as_yaml(guess) if guess else "{" + ", ".join(f"{r}: COLUMN" for r in roles) + "}"
        return (
            f"no row of {name} has a column {self.first.column!r} ({self.read:,} rows read); columns there: "
            f"{self._columns()}. Set data.columns={mapping}"
        )

    def _no_labels(self, fact: str) -> str:
        if self.split == "train":
            return f"{fact}: the split is unlabeled. Train on rows with labels"
        return (
            f"{fact}: the split is unlabeled and cannot be scored. Remove data.{self.split}; "
            "`rankzero predict` gives predictions for such rows"
        )

    def _unknown_labels(self, role: str, data: DataConfig, roles: Roles) -> str:
        label = roles[role]
        assert isinstance(label, Label | Labels)
        values, allowed = [value for value, _ in self.unknown.most_common()], sorted(label.values)
        counts = _listed(f"{value!r} ({count:,} rows)" for value, count in self.unknown.most_common())
        start = (
            f"every label in column {self.first.column!r} of {self.shard.name} is unknown: {counts}; task.labels has "
            f"{_listed(map(repr, allowed))}. "
        )
        rows = [{k: v for k, v in row.items() if k != self.first.column} for row in self.rows]
        guess = guess_columns({role: label}, rows, {})
        if guess and all(label.matches(row.get(guess[role])) for row in rows):
            columns = {**data.columns, **guess}
            return f"{start}Column {guess[role]!r} has such labels: set data.columns={as_yaml(columns)}"
        if alike := [(value, other) for value in values for other in allowed if look_alike(value, other)]:
            (value, other), *_ = alike
            return (
                f"{start}{value!a} differs from {other!a} by case, spaces or Unicode form only: write the labels in "
                "task.labels as the file does"
            )
        classes = guess_classes(values, allowed)
        names = as_yaml(classes or dict.fromkeys(values[:SHOWN], "NAME"))
        other = "" if classes else f", or data.columns={{{role}: COLUMN}}; columns there: {self._columns()}"
        return f"{start}Set task.labels={names} (value in the file: name of the class){other}"

    def _columns(self) -> str:
        return _listed(repr(str(name)[:40]) for name in self.rows[0]) or "none"


def _kind(row: BadRow) -> str:
    return "unknown label" if row.unknown is not None else row.reason


def _listed(values: Iterable[str]) -> str:
    shown = list(values)
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
