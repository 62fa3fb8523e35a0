"""Guesses from the columns of a file: which one holds a role, and whether its first line is a header at all."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence

from trainer.data.labels import is_unlabeled, label_form

# Names that public data sets give to the columns of a role, the most usual first.
SYNONYMS = {
    "text": "text review reviews sentence content body comment tweet message document utterance post article news query"
    " question input abstract description headline title sms sentence1 text1 text_a question1 premise",
    "text_pair": "text_pair sentence2 text2 text_b question2 hypothesis pair second answer response passage context",
    "label": "label labels sentiment class category target y rating score stars polarity intent emotion topic type tag"
    " label_text gold_label annotation",
    "src": "src source input text document article question dialogue context",
    "trg": "trg tgt target output translation summary highlights answer response abstract",
}
FIRST_OF_PAIR = "sentence1 text1 text_a question1 premise question query"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
WORDS = 4  # a name of so many words is a sentence
DEPTH = 3  # of nested objects


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The values of a row with those of nested objects by dotted path: {"translation.de": …}."""
    found: dict[str, object] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value and prefix.count(".") < DEPTH
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}  # type: ignore[arg-type]
    return found


def guess_columns(
    roles: Mapping[str, Collection[str] | None], rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]
) -> dict[str, str] | None:
    """A `data.columns` for a file.

    Args:
        roles: those of the task, each with its allowed values or None.
        rows: a few rows of the file, by column (see `flat`).
        columns: `data.columns` as it is: what of it exists stays.

    Returns:
        role -> column for every role whose column has another name; None where one cannot be guessed.
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    found = {role: columns.get(role, role) for role in roles if columns.get(role, role) in names}
    for role, allowed in roles.items():
        free = [name for name in names if name not in found.values()]
        if role not in found and (column := _column_of(role, allowed, free, rows, "text_pair" in roles)) is not None:
            found[role] = column
    missing = [role for role in roles if role not in found]
    free = [name for name in names if name not in found.values() and _is_text(name, rows)]
    if missing == ["text"] and free:
        found["text"] = max(free, key=lambda name: sum(len(str(row.get(name) or "")) for row in rows))
    elif missing and "label" not in missing and len(free) == len(missing):
        found |= dict(zip(missing, free, strict=True))
    if any(role not in found for role in roles):
        return None
    return {role: found[role] for role in roles if found[role] != role}


def _column_of(
    role: str, allowed: Collection[str] | None, names: Sequence[str], rows: Sequence[Mapping[str, object]], pair: bool
) -> str | None:
    last = {_plain(name.rpartition(".")[2]): name for name in reversed(names)}
    plain = last | {_plain(name): name for name in reversed(names)}
    if role in plain:
        return plain[role]
    if allowed is not None:
        for name in names:
            values = [row[name] for row in rows if not is_unlabeled(row.get(name))]
            if values and all(label_form(value, allowed) in allowed for value in values):
                return name
    known = f"{FIRST_OF_PAIR} {SYNONYMS['text']}" if role == "text" and pair else SYNONYMS.get(role, "")
    return next((plain[name] for name in known.split() if name in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _is_text(name: str, rows: Sequence[Mapping[str, object]]) -> bool:
    return all(isinstance(row.get(name), str | None) for row in rows)


def is_no_header(names: Sequence[str], labels: Collection[str] | None) -> bool:
    """Whether the names of columns look like a row: a label, a number or a sentence is among them."""
    values = [name.strip() for name in names]
    return any(v in (labels or ()) or _NUMBER.fullmatch(v) or len(v.split()) >= WORDS for v in values)


def header_for(
    names: Sequence[str], roles: Mapping[str, Collection[str] | None], columns: Mapping[str, str]
) -> list[str]:
    """Names for the columns of a file without a header, given its first row; roles in their order but the label."""
    labels = roles.get("label") or ()
    texts = [columns.get(role, role) for role in roles if role != "label"]
    header: list[str] = []
    for name in names:
        is_label = "label" in roles and name.strip() in labels
        header.append(columns.get("label", "label") if is_label else texts.pop(0) if texts else f"column{len(header)}")
    return header


def as_yaml(mapping: Mapping[str, str]) -> str:
    """A mapping as it is written on the command line: `{text: review, label: sentiment}`."""
    return "{" + ", ".join(f"{_word(key)}: {_word(value)}" for key, value in mapping.items()) + "}"


def _word(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*|\d+", text) and text.lower() not in ("yes", "no", "on", "off", "null", "y")
    return text if plain and text.lower() not in ("true", "false", "n") else json.dumps(text, ensure_ascii=False)
