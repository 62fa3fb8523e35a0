"""The rows that `predict` answers: lines of text, rows by column, or lists of tokens."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.data.cleaning import cleaner
from trainer.data.paths import MISSING, value_at
from trainer.data.roles import BadValue, Roles
from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.recipe import Recipe

Example = dict[str, Any]  # name -> list of token or class ids, or of numbers
Row = dict[str, Any]  # role -> value of the type that the role declares
Line = str | Mapping[str, Any] | Sequence[str]  # what `predict` takes: a line of text, a row by column, or tokens


class PredictionRows(ABC):
    """The part of a task that reads the rows of `predict`."""

    kind: ClassVar[str]
    recipe: Recipe

    @classmethod
    @abstractmethod
    def roles(cls, config: Any) -> Roles: ...

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Example]: ...

    def row_of(self, line: str) -> Row:
        """Return the row of a line of text for `rankzero predict`."""
        return {next(iter(self.roles(self.recipe.task))): line}

    @property
    def input_columns(self) -> dict[str, str]:
        """The columns that `predict` reads from a row, by role."""
        columns, roles = self.recipe.data.columns, self.roles(self.recipe.task)
        return {name: columns.get(name, name) for name, role in roles.items() if not role.target}

    def line_of(self, line: Line) -> str:
        """Return a row as a line of text, with tabs between its inputs. A line of text is returned as it is."""
        if not isinstance(line, Mapping):
            return line if isinstance(line, str) else " ".join(line)
        values = [value_at(line, column) for column in self.input_columns.values()]
        there = [value for value in values if value is not MISSING and value is not None]
        return "\t".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in there)

    def cleaned_row(self, line: Line) -> Row:
        """Return the row of a line of text or of a dict, cleaned as in training.

        Raises:
            DataError: the dict has no value of an input, or one of another type.
        """
        clean, roles = cleaner(self.recipe.data.cleaning), self.roles(self.recipe.task)
        if isinstance(line, str):
            return {role: clean(text) for role, text in self.row_of(line).items()}
        if not isinstance(line, Mapping):
            raise DataError(f"a row is a list of {len(line)} tokens, and task {self.kind} reads texts; give a text")
        row: Row = {}
        for role, column in self.input_columns.items():
            raw = value_at(line, column)
            if raw is MISSING:
                raise DataError(f"column {column!r} is missing; columns here: {', '.join(map(str, line)) or 'none'}")
            try:  # an empty text is answered, as an empty line is
                row[role] = "" if raw == "" else roles[role].convert(raw, clean)
            except BadValue as error:
                raise DataError(f"column {column!r} {error}") from None
        return row

    def encode_lines(self, lines: Sequence[Line]) -> list[Example]:
        """Encode lines of text or rows for `predict`, cleaned as in training."""
        return self.encode([self.cleaned_row(line) for line in lines])

    def encode_lines_apart(self, lines: Sequence[Line]) -> tuple[dict[int, Example], dict[int, str]]:
        """Return examples by line number, and the error of each line that cannot be encoded."""
        with contextlib.suppress(Exception):  # any error of a cleaning step or a tokenizer
            return dict(enumerate(self.encode_lines(lines))), {}
        examples: dict[int, Example] = {}
        errors: dict[int, str] = {}
        for i, line in enumerate(lines):
            try:
                examples[i] = self.encode_lines([line])[0]
            except Exception as error:
                errors[i] = f"{type(error).__name__}: {str(error)[:200]}"
        return examples, errors
