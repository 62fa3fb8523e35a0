"""Tags in the schemes BIO, BIOES, BILOU and IOB1: checked, converted to BIO, and converted to entities.

In BIO the first token of an entity has the tag B-TYPE and its other tokens I-TYPE. All tokens outside of entities have
O. In BIOES the last token of an entity has E-TYPE, and an entity of one token S-TYPE (in BILOU: L and U). In IOB1 an
entity begins with I-TYPE, and with B-TYPE only after another entity of its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.data.labels import ClassIndex
from trainer.data.roles import BadValue, checked_text

OUTSIDE = "O"
_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
IOB1 = ", or set task.scheme=iob1 if all entities of the files begin with I-"
_SHOWN = 8


def tag_names(types: Sequence[str]) -> list[str]:
    """Return the tags of a model in the order of their ids: O, then B-TYPE and I-TYPE of each type."""
    return [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def to_bio(raw: Sequence[object], labels: Mapping[str, str], iob1: bool = False) -> list[str]:
    """Return the tags of a row as BIO, with the types named as the recipe names them.

    Args:
        raw: tags of a file, in any of the schemes.
        labels: type in the files -> type of the recipe (`task.labels`).
        iob1: an I- tag without an entity of its type before it begins one.

    Raises:
        BadValue: a tag is unknown, or does not fit the one before or after it.
    """
    parts = [_parsed(value, number, labels) for number, value in enumerate(raw, start=1)]
    if iob1:
        return _from_iob1(parts, raw)
    closed = any(prefix in "ES" for prefix, _ in parts)
    before = (OUTSIDE, "")
    for number, (prefix, name) in enumerate(parts, start=1):
        opened = before[0] in ("BI" if closed else "BIES") and before[1] == name
        if prefix in "IE" and not opened:
            raise _bad_sequence(raw, number, f"{raw[number - 1]} needs a B- or I- tag of its type before it", IOB1)
        if closed and before[0] in "BI" and not (prefix in "IE" and opened):
            raise _bad_sequence(raw, number, f"an entity of {before[1]} has no E- tag before it")
        before = (prefix, name)
    if closed and before[0] in "BI":
        raise BadValue("holds a bad sequence of tags", f": the row ends before the E- tag of {before[1]}")
    converted = {"S": "B", "E": "I"}
    return [f"{converted.get(prefix, prefix)}-{name}" if name else OUTSIDE for prefix, name in parts]


def _from_iob1(parts: Sequence[tuple[str, str]], raw: Sequence[object]) -> list[str]:
    """Return BIO tags of the prefixes and types of IOB1 tags."""
    tags: list[str] = []
    before = ""  # type of the token before
    for number, (prefix, name) in enumerate(parts, start=1):
        if prefix in "ES":
            fix = f": {raw[number - 1]} (token {number}) is no tag of IOB1. Set task.scheme=auto"
            raise BadValue("holds a bad sequence of tags", fix)
        tags.append(f"{'I' if prefix == 'I' and name == before else 'B'}-{name}" if name else OUTSIDE)
        before = name
    return tags


def _parsed(value: object, number: int, labels: Mapping[str, str]) -> tuple[str, str]:
    """Return the prefix (B, I, E, S or O) and the type of a tag."""
    if isinstance(value, ClassIndex):
        value = value.names[value] if 0 <= value < len(value.names) else int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        fix = f" {value} (token {number}): write tags as texts, such as B-{next(iter(labels.values()))}"
        raise BadValue("holds a number in place of a tag", fix)
    tag = checked_text(value).strip()
    prefix, dash, name = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if not dash or prefix not in _PREFIXES:
        known = f"O, B-{next(iter(labels))}, I-{next(iter(labels))}, …"
        raise BadValue(f"holds {tag[:60]!r}, which is no tag", f" (token {number}); allowed: {known}")
    if name not in labels:
        known = ", ".join(list(labels)[:_SHOWN]) + (" …" if len(labels) > _SHOWN else "")
        fix = f" (token {number}); it lists {known}. Add the type to task.labels"
        raise BadValue(f"holds the type {name[:60]!r}, which is not in task.labels", fix)
    return _PREFIXES[prefix], labels[name]


def _bad_sequence(raw: Sequence[object], number: int, problem: str, hint: str = "") -> BadValue:
    near = " ".join(map(str, raw[max(0, number - 3) : number + 1]))[:80]
    fix = f": {problem} (token {number}, in … {near} …). Begin each entity with B-TYPE{hint}"
    return BadValue("holds a bad sequence of tags", fix)


def entities_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first token, last token + 1, type) of each entity of BIO tags. An I- tag without entity begins one."""
    found: list[tuple[int, int, str]] = []
    for number, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and found and found[-1][1] == number and found[-1][2] == name:
            found[-1] = (found[-1][0], number + 1, name)
        elif prefix != OUTSIDE:
            found.append((number, number + 1, name))
    return found
