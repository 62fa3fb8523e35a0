"""Labels: the form in which a file writes them, and suggestions for a label that the recipe does not list."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

SHOWN = 20  # labels that a message lists
NO_LABEL = frozenset(("", "-1", "-1.0", "-100", "?", "nan", "none", "null", "na", "n/a", "unlabeled", "unlabelled"))
"""Values that mean "no label" in public data sets, in lower case."""
_INTEGRAL = re.compile(r"([+-]?\d+)\.0+")


class ClassIndex(int):
    """A class index of a `ClassLabel` column of the library `datasets`.

    Attributes:
        names: all class names of the column, in the order of their indices.
    """

    names: tuple[str, ...]

    def __new__(cls, index: int, names: tuple[str, ...]) -> ClassIndex:
        self = super().__new__(cls, index)
        self.names = names
        return self

    def __reduce__(self) -> Any:
        return ClassIndex, (int(self), self.names)


def is_unlabeled(value: Any) -> bool:
    """Return whether a value means "no label": -1, an empty text, null, NaN, a question mark."""
    return value is None or str(value).strip().lower() in NO_LABEL


def label_form(value: object, allowed: Collection[str]) -> object:
    """Return a label as text in the form of the recipe: true, True or 1; 1 or 1.0; a class index or its name."""
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        is_true = text.lower() == "true"
        forms = [*([text] if isinstance(value, str) else []), text.lower(), text.capitalize(), str(int(is_true))]
        forms.append(f"{forms[-1]}.0")
    elif isinstance(value, str):
        forms = [text]
        if match := _INTEGRAL.fullmatch(text):
            forms += [str(int(match[1])), f"{int(match[1])}.0"]
        elif text.removeprefix("-").isdecimal():
            forms.append(f"{text}.0")
    elif isinstance(value, float | Decimal | int):
        if value != value or value in (math.inf, -math.inf) or value != int(value):
            return value
        number = int(value)
        forms = [str(number), f"{number}.0"]
        if isinstance(value, ClassIndex) and 0 <= number < len(value.names) and set(value.names) <= set(allowed):
            return value.names[number]
    else:
        return value
    return next((form for form in forms if form in allowed), forms[0])


def _visible(text: str) -> str:
    """Return the text without control and format characters, and with single spaces between its words."""
    kept = (" " if char.isspace() else char for char in text)
    return " ".join("".join(char for char in kept if unicodedata.category(char) not in ("Cf", "Cc")).split())


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


FOLDS: dict[str, Callable[[str], str]] = {
    "spaces or invisible characters": _visible,
    "Unicode form": _nfkc,
    "case": str.casefold,
}


def hidden_difference(label: str, other: str) -> list[str]:
    """Return in what two labels that look alike differ, as names of FOLDS; empty if they differ in anything else."""
    needed = list(FOLDS)
    if _folded(label, needed) != _folded(other, needed):
        return []
    for name in reversed(FOLDS):  # a no-break space differs from a space in Unicode form, too: one name is enough
        fewer = [fold for fold in needed if fold != name]
        if _folded(label, fewer) == _folded(other, fewer):
            needed = fewer
    return needed


def _folded(text: str, names: Collection[str]) -> str:
    for name in names:
        text = FOLDS[name](text)
    return text


def unknown_label(label: str, allowed: Collection[str]) -> str:
    """Return the end of the message about an unknown label: the known ones, and the nearest with the difference."""
    known = sorted(allowed)
    listed = ", ".join(map(repr, known[:SHOWN])) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    for other in known:
        if differences := hidden_difference(label, other):
            return (
                f"; known: {listed}; it differs from {other!a} by {' and '.join(differences)} only: the file has "
                f"{label!a}. Write the label as task.labels does, or add it there"
            )
    near = difflib.get_close_matches(label, known, n=1, cutoff=0.6)
    if not near:
        return f"; known: {listed}"
    suggestion = repr(near[0]) if (label + near[0]).isascii() else ascii(near[0])
    escaped = "" if label.isascii() else f" ({label[:60]!a})"
    return f"; known: {listed}; did you mean {suggestion}?{escaped}"


def guess_classes(values: Collection[str], names: Sequence[str]) -> dict[str, str] | None:
    """Return a mapping of the values of a file to as many class names, by spelling, or None if it is not clear."""
    if len(values) != len(names):
        return None
    mapping: dict[str, str] = {}
    for value in values:
        low = value.casefold()
        starts = [name for name in names if name.casefold().startswith(low) or low.startswith(name.casefold())]
        if len(starts) != 1:
            return None
        mapping[value] = starts[0]
    return mapping if len(set(mapping.values())) == len(names) else None
