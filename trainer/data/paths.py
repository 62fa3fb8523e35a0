"""Find columns by name or dotted path, in rows and in the schema of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

DEPTH = 3  # of nested objects that messages list
MISSING = object()
UNREAD = type("Unread", (), {"__repr__": lambda self: "<not read>"})()
"""The value of a column that exists in the file and that the task does not use."""


def value_at(values: Mapping[str, object], column: str) -> object:
    """Return the value of a column, or MISSING.

    An exact name comes first, then a dotted path ("translation.de"), then a name that differs by spaces at its ends.
    """
    value = values.get(column, MISSING)
    if value is not MISSING:
        return value
    head, _, rest = column.partition(".")
    while rest:
        inner = values.get(head)
        if isinstance(inner, Mapping) and (value := value_at(inner, rest)) is not MISSING:
            return value
        more, _, rest = rest.partition(".")
        head = f"{head}.{more}"
    name = matching((name for name in values if isinstance(name, str)), column)
    return MISSING if name is None else values[name]


def matching(names: Iterable[str], column: str) -> str | None:
    """Return the name that a column has in a file: the same one, or one that differs by spaces at its ends."""
    names = list(names)
    if column in names:
        return column
    same = [name for name in names if name.strip() == column.strip()]
    return same[0] if len(same) == 1 else None


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return the values of a row by the paths that `data.columns` can name: {"t": {"de": …}} has t.de."""
    flattened: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and prefix.count(".") < DEPTH:
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened
