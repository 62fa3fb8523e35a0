"""Guess the columns of a file from its names and values: which one holds a role, and whether it has a header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from trainer.data.labels import is_unlabeled
from trainer.data.roles import Label, Role, Roles, Text

# Names that public data sets give to the columns of texts, the most usual first. Other roles have their own.
SYNONYMS = {
    "text": "text review reviews sentence content body comment tweet message document utterance post article news query"
    " question input abstract description headline title sms sentence1 text1 text_a question1 premise",
    "text_pair": "text_pair sentence2 text2 text_b question2 hypothesis pair second answer response passage context",
    "src": "src source input text document article question dialogue context",
    "trg": "trg tgt target output translation summary highlights answer response abstract",
}
FIRST_OF_PAIR = "sentence1 text1 text_a question1 premise question query"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
WORDS = 4  # a name of so many words is a sentence


def guess_columns(
    roles: Roles, rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]
) -> dict[str, str] | None:
    """Guess `data.columns` for a file.

    Args:
        roles: of the task.
        rows: a few rows of the file, by column (see `paths.flat`).
        columns: `data.columns` as it is. Columns that the file has are kept.

    Returns:
        role -> column for every role whose column has another name; None if one cannot be guessed.
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    guess = {role: columns.get(role, role) for role in roles if columns.get(role, role) in names}
    for name, role in roles.items():
        free = [column for column in names if column not in guess.values()]
        if name not in guess and (column := _column_of(name, role, free, rows, "text_pair" in roles)) is not None:
            guess[name] = column
    missing = [name for name in roles if name not in guess]
    free = [name for name in names if name not in guess.values() and _is_text(name, rows)]
    if missing == ["text"] and free:
        guess["text"] = max(free, key=lambda name: sum(len(str(row.get(name) or "")) for row in rows))
    elif len(free) == len(missing) and all(isinstance(roles[name], Text) for name in missing):
        guess |= dict(zip(missing, free, strict=True))
    if any(name not in guess for name in roles):
        return None
    return {name: guess[name] for name in roles if guess[name] != name}


def _column_of(
    name: str, role: Role, columns: Sequence[str], rows: Sequence[Mapping[str, object]], pair: bool
) -> str | None:
    last = {_plain(column.rpartition(".")[2]): column for column in reversed(columns)}
    plain = last | {_plain(column): column for column in reversed(columns)}
    if name in plain:
        return plain[name]
    for column in columns:
        values = [row[column] for row in rows if not is_unlabeled(row.get(column))]
        if values and all(map(role.matches, values)):
            return column
    synonyms = f"{FIRST_OF_PAIR} {SYNONYMS['text']}" if name == "text" and pair else SYNONYMS.get(name, role.synonyms)
    return next((plain[synonym] for synonym in synonyms.split() if synonym in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _is_text(name: str, rows: Sequence[Mapping[str, object]]) -> bool:
    return all(isinstance(row.get(name), str | None) for row in rows)


def is_no_header(names: Sequence[str], roles: Roles) -> bool:
    """Return whether the names of columns look like a row: a label, a number or a sentence is among them."""
    values = [name.strip() for name in names]
    return any(_label_role(v, roles) or _NUMBER.fullmatch(v) or len(v.split()) >= WORDS for v in values)


def header_for(names: Sequence[str], roles: Roles, columns: Mapping[str, str]) -> list[str]:
    """Return names for the columns of a file without a header, given its first row: labels, then texts in order."""
    others = [columns.get(name, name) for name, role in roles.items() if not isinstance(role, Label)]
    header: list[str] = []
    for value in names:
        if role := _label_role(value.strip(), roles):
            header.append(columns.get(role, role))
        else:
            header.append(others.pop(0) if others else f"column{len(header)}")
    return header


def _label_role(value: str, roles: Roles) -> str | None:
    """Return the role that has this label."""
    return next((name for name, role in roles.items() if isinstance(role, Label) and value in role.values), None)


def as_yaml(mapping: Mapping[str, str]) -> str:
    """Return a mapping as it is written on the command line: `{text: review, label: sentiment}`."""
    return "{" + ", ".join(f"{_word(key)}: {_word(value)}" for key, value in mapping.items()) + "}"


def _word(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*|\d+", text) and text.lower() not in ("yes", "no", "on", "off", "null", "y")
    return text if plain and text.lower() not in ("true", "false", "n") else json.dumps(text, ensure_ascii=False)
