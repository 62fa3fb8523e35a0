"""Types of the values in a row. A task declares one type for each role: `{"text": Text(), "label": Label(names)}`.

A type converts the raw value of a file or says what is wrong with it. Everything else in this package (cleaning,
survey, tokenizer training, `prepare`, hints about mistakes) asks the type and knows no role by name.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from trainer.data.labels import label_form, unknown_label

Value = str | float | list[str]
Cleaner = Callable[[str], str]
MAX_CHARACTERS = 1_000_000  # a value of this length or more is a bad row
_ITEM = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|-?\d+)"""
_PRINTED = re.compile(rf"\[\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*)?\]")  # no ['a' 'b'], which Python reads as ['ab']


class BadValue(Exception):
    """A raw value that a role cannot have.

    Attributes:
        reason: what is wrong, in the words that are counted ("is null").
        detail: what the value is, and the fix; for the message only.
        unknown: a label that the recipe does not list.
    """

    def __init__(self, reason: str, detail: str = "", unknown: str | None = None):
        super().__init__(reason + detail)
        self.reason, self.detail, self.unknown = reason, detail, unknown


class Role(ABC):
    """The type of the values of one role."""

    synonyms: ClassVar[str] = ""  # usual names of such columns in public data sets, the most usual first
    is_list: ClassVar[bool] = False
    stored: ClassVar[str] = "string"  # Arrow type of a value, or of an item of a list
    optional: ClassVar[bool] = False  # only training rows need it
    target: bool = True  # the task predicts it: it is not part of the model's input

    @abstractmethod
    def convert(self, raw: object, clean: Cleaner) -> Any:
        """Return the value of a row from the raw value of a file.

        Args:
            raw: any value of JSON, CSV, Parquet or Arrow, or of a row of a prepared corpus.
            clean: the cleaning steps of the recipe, for texts.

        Raises:
            BadValue: the raw value is not of this type.
        """

    def check(self, value: Any, values: Mapping[str, Any]) -> None:  # noqa: B027 - most types need no check
        """Check a converted value against the other values of its row, such as that two lists have equal lengths.

        Raises:
            BadValue: it does not fit them.
        """

    def texts(self, value: Any) -> list[str]:
        """Return the texts in a value, on which a tokenizer is trained."""
        return []

    def counted(self, value: Any) -> Sequence[str]:
        """Return the labels in a value, which the survey counts."""
        return ()

    def measured(self, value: Any) -> float | None:
        """Return the number in a value, of which the survey computes mean and deviation."""
        return None

    def matches(self, raw: object) -> bool:
        """Return whether a raw value can be recognized as one of this role, whatever its column is called."""
        return False


Roles = Mapping[str, Role]


@dataclass(frozen=True)
class Text(Role):
    """A text, cleaned by the steps of the recipe. It is not empty."""

    target: bool = False

    def convert(self, raw: object, clean: Cleaner) -> str:
        text = checked_text(raw)
        try:
            cleaned = clean(text)
        except Exception as error:  # a cleaning step may raise anything: it concerns this row only
            raise BadValue("cannot be cleaned", f": {type(error).__name__}: {str(error)[:200]}") from error
        if not cleaned or cleaned.isspace():
            raise BadValue("is empty after cleaning" if text else "is empty")
        return cleaned

    def texts(self, value: Any) -> list[str]:
        return [value]


@dataclass(frozen=True)
class Label(Role):
    """One of some labels. Files may write it as a text, a whole number, a truth value or a class index.

    Attributes:
        values: the labels, as `task.labels` lists them.
    """

    values: Collection[str]
    target: bool = True
    synonyms: ClassVar[str] = (
        "label labels sentiment class category target y rating score stars polarity intent emotion topic type tag"
        " label_text gold_label annotation"
    )

    def convert(self, raw: object, clean: Cleaner) -> str:
        label = checked_text(label_form(raw, self.values))
        if not label:
            raise BadValue("is empty")
        if label not in self.values:
            reason = f"holds {label[:60]!r}, which is not in task.labels"
            raise BadValue(reason, unknown_label(label, self.values), label[:60])
        return label

    def counted(self, value: Any) -> Sequence[str]:
        return (value,)

    def matches(self, raw: object) -> bool:
        form = label_form(raw, self.values)
        return isinstance(form, str) and form in self.values


@dataclass(frozen=True)
class Labels(Role):
    """A list of labels, in the order of the file. It may be empty.

    JSON, Parquet and Arrow files hold a list. In CSV files it is a JSON list: `["a", "b"]`.

    Attributes:
        values: the labels that an item may be.
    """

    values: Collection[str]
    target: bool = True
    is_list: ClassVar[bool] = True
    synonyms: ClassVar[str] = "labels tags ner_tags pos_tags categories classes topics genres label"

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        label = Label(self.values)
        return [label.convert(item, clean) for item in items_of(raw)]

    def counted(self, value: Any) -> Sequence[str]:
        return tuple(value)

    def matches(self, raw: object) -> bool:
        return isinstance(raw, list) and bool(raw) and all(map(Label(self.values).matches, raw))


@dataclass(frozen=True)
class Number(Role):
    """A finite number. Text such as "3.5" is converted."""

    target: bool = True
    stored: ClassVar[str] = "float64"
    synonyms: ClassVar[str] = "score number rating stars value target similarity label y"

    def convert(self, raw: object, clean: Cleaner) -> float:
        _refuse_missing(raw)
        fix = f": {str(raw)[:60]}. Write a number such as 3.5, or name another column in data.columns"
        if isinstance(raw, bool) or not isinstance(raw, str | int | float | Decimal):
            raise BadValue(f"is not a number but {type(raw).__name__}", fix)
        try:
            number = float(raw)
        except (ValueError, OverflowError):
            raise BadValue("is not a number", fix) from None
        if not math.isfinite(number):
            raise BadValue("is not a finite number", fix)
        return number

    def measured(self, value: Any) -> float | None:
        return float(value)


@dataclass(frozen=True)
class Tokens(Role):
    """A list of tokens (words), each cleaned by the steps of the recipe. Neither the list nor a token is empty.

    JSON, Parquet and Arrow files hold a list. In CSV files it is a JSON list: `["A", "dog"]`.
    """

    target: bool = False
    is_list: ClassVar[bool] = True
    synonyms: ClassVar[str] = "tokens words text sentence"

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        items, text = items_of(raw), Text()
        if not items:
            raise BadValue("is an empty list")
        tokens = []
        for number, item in enumerate(items, start=1):
            try:
                tokens.append(text.convert(item, clean))
            except BadValue as error:
                raise BadValue(f"holds a token that {error.reason}", f"{error.detail} (token {number})") from error
        return tokens

    def texts(self, value: Any) -> list[str]:
        return [" ".join(value)]


def encodable(text: str) -> bool:
    """Return whether UTF-8 can represent a text: a lone surrogate cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def checked_text(raw: object) -> str:
    """Return a raw value that is a text which a row may hold.

    Raises:
        BadValue: it is not a text, or it is too long, or it holds characters that no text has.
    """
    _refuse_missing(raw)
    if isinstance(raw, bytes):
        fix = "; write it as text, in pandas df[column] = df[column].str.decode('utf-8')"
        raise BadValue("is not text but bytes", fix)
    if not isinstance(raw, str):
        raise BadValue(f"is not text but {type(raw).__name__}", f": {str(raw)[:60]}")
    if "\0" in raw:
        raise BadValue("holds a NUL character", f" at {raw.index(chr(0))}")
    if len(raw) >= MAX_CHARACTERS:
        raise BadValue("is too long", f": {len(raw)} characters; fewer than {MAX_CHARACTERS} are allowed")
    if not raw.isascii() and not encodable(raw):
        raise BadValue("holds half a surrogate pair")
    return raw


def _refuse_missing(raw: object) -> None:
    if raw is None:
        raise BadValue("is null")


def list_in(text: str) -> list[object] | None:
    """Return the list that a text holds, as JSON or as Python prints it: ['a', 'b']. None for any other text."""
    text = text.strip()
    for parse in (json.loads, *((ast.literal_eval,) if _PRINTED.fullmatch(text) else ())):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError):
            value = parse(text)
            return value if isinstance(value, list) else None
    return None


def items_of(raw: object) -> list[object]:
    """Return a list as a file holds it, or as a text: JSON, or as Python prints it.

    Raises:
        BadValue: there is no list.
    """
    _refuse_missing(raw)
    value = list_in(raw) if isinstance(raw, str) else raw
    if not isinstance(value, list):
        fix = f': {str(raw)[:60]}. Write a JSON list such as ["a", "b"], or name another column in data.columns'
        raise BadValue(f"is not a list but {type(raw).__name__}", fix)
    return value
