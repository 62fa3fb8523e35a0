"""Errors of predicted entities by kind, and the confusion of types.

A true and a predicted entity that share a character are compared with each other, each with at most one.

    boundary    the same type, other boundaries
    type        another type, with the same boundaries or others
    missed      a true entity without a predicted one
    spurious    a predicted entity without a true one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

KINDS = ("boundary", "type", "missed", "spurious")
NONE = "(none)"  # no entity, in the confusion of types
Entity = Mapping[str, Any]


class Pair(NamedTuple):
    """A true and a predicted entity that belong together, or one of them alone."""

    kind: str  # one of KINDS, or "right"
    true: Entity | None
    predicted: Entity | None


def paired(true: Sequence[Entity], predicted: Sequence[Entity]) -> list[Pair]:
    """Pair the entities of a text: equal ones first, then those of one type, then by the characters that they share."""
    candidates = sorted(
        (_rank(a, b), i, j) for i, a in enumerate(true) for j, b in enumerate(predicted) if _shared(a, b) > 0
    )
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in candidates:
        if i not in partner and j not in taken:
            partner[i] = j
            taken.add(j)
    pairs = [
        Pair(_kind(a, predicted[partner[i]]), a, predicted[partner[i]]) if i in partner else Pair("missed", a, None)
        for i, a in enumerate(true)
    ]
    return pairs + [Pair("spurious", None, b) for j, b in enumerate(predicted) if j not in taken]


def compare(true: Sequence[Entity], predicted: Sequence[Entity]) -> list[Pair]:
    """Return the errors of a text."""
    return [pair for pair in paired(true, predicted) if pair.kind != "right"]


def confusion(records: Iterable[Mapping[str, Any]], types: Sequence[str]) -> list[list[int]]:
    """Return the counts [true type][predicted type]; the last of each is NONE. Boundaries may differ."""
    ids = {name: i for i, name in enumerate([*types, NONE])}
    table = [[0] * len(ids) for _ in ids]
    for record in records:
        for _, true, predicted in paired(record["target"], record["prediction"]):
            row, column = (ids[NONE if entity is None else entity["label"]] for entity in (true, predicted))
            table[row][column] += 1
    return table


def _shared(a: Entity, b: Entity) -> int:
    return int(min(a["end"], b["end"]) - max(a["start"], b["start"]))


def _rank(a: Entity, b: Entity) -> tuple[int, int, int]:
    bounds, label = _same_bounds(a, b), a["label"] == b["label"]
    return 0 if bounds and label else 1, 0 if label else 1, -_shared(a, b)


def _same_bounds(a: Entity, b: Entity) -> bool:
    return bool(a["start"] == b["start"] and a["end"] == b["end"])


def _kind(a: Entity, b: Entity) -> str:
    if a["label"] != b["label"]:
        return "type"
    return "right" if _same_bounds(a, b) else "boundary"
