"""Suggest translation for rows with a text in two languages."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.data.language import NAMES
from trainer.data.profile import Table
from trainer.models.suggested import scratch_transformer
from trainer.task.suggestion import Suggestion, is_label, renamed, text_columns

SIDES = ({"src", "source"}, {"trg", "tgt", "target"})
ALIKE = 2.5  # texts and their translations differ less in length
_CODE = re.compile(r"(?!src|trg|tgt)[a-z]{2,3}")


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    sides = _sides(table, columns)
    named = sides is not None
    sides = sides or _by_language(table)
    if sides is None:
        return None
    roles = dict(zip(("src", "trg"), sides, strict=True))
    names, remarks = _languages(roles, table)
    model, tokenizer = scratch_transformer(table.rows)
    return Suggestion(
        fit=0.9 if named else 0.75,
        why=f"{names[0]} in column {sides[0]!r}, {names[1]} in column {sides[1]!r}"
        if table.languages is None
        else f"pairs of lines, {names[0]} to {names[1]}",
        task={"kind": "translation", "src_language": names[0], "trg_language": names[1]},
        columns=renamed(roles),
        inputs=tuple(sides),
        model={"kind": "transformer", **model},
        tokenizer=tokenizer,
        optim={
            "betas": [0.9, 0.98],
            "eps": 1e-9,
            "label_smoothing": 0.1,
            "averaging": {"kind": "last", "last": 5},
        },
        evaluation={"beam_size": 5},
        notes={
            "task.src_language": "for reports",
            "task.trg_language": "decides how BLEU splits words: Chinese, Japanese and Korean have their own way",
            "tokenizer": "trained on both sides of the training rows; shared: false trains one on each",
            "model.kind": f"init chose random weights for {table.rows:,} pairs; init --task text_to_text fine-tunes T5",
            "optim.averaging": "the model of the last evaluations, averaged",
            "evaluation.beam_size": "1 is faster",
        },
        remarks=tuple(remarks),
    )


def _sides(table: Table, columns: Mapping[str, str]) -> tuple[str, str] | None:
    texts = [column.name for column in table.columns.values() if column in text_columns(table)]
    if {"src", "trg"} <= columns.keys():
        return columns["src"], columns["trg"]
    last = {name: name.rpartition(".")[2].strip().lower() for name in texts}
    named = [[name for name in texts if last[name] in side] for side in SIDES]
    if all(len(names) == 1 for names in named):
        return named[0][0], named[1][0]
    coded = [name for name in texts if last[name] in NAMES or last[name].title() in NAMES.values()]
    if len(coded) != 2:
        return None
    first, second = sorted(coded, key=lambda name: last[name] in ("en", "english"))
    return first, second


def _by_language(table: Table) -> tuple[str, str] | None:
    """Return two columns of texts of about the same length, each in one language. English is the second one."""
    texts = [
        column for column in table.columns.values() if column in text_columns(table) and not is_label(column, table)
    ]
    found = [column for column in texts if column.language]
    if len(found) != 2 or found[0].language == found[1].language:
        return None
    if not 1 / ALIKE < found[0].characters / found[1].characters < ALIKE or min(column.words for column in found) < 2:
        return None
    first, second = sorted(found, key=lambda column: column.language == "en")
    return first.name, second.name


def _languages(roles: Mapping[str, str], table: Table) -> tuple[list[str], list[str]]:
    """Return the languages of both sides, and sentences where the texts are in another one than the name says.

    If both sides look like one language, the names are kept.
    """
    words = {role: (table.languages or roles)[role].rpartition(".")[2].strip().lower() for role in roles}
    read = {role: table.columns[name].language if name in table.columns else None for role, name in roles.items()}
    differ = len(set(read.values())) > 1
    names, remarks = [], []
    for role, word in words.items():
        said = NAMES.get(word, word.title() if word.title() in NAMES.values() else None)
        seen = NAMES.get(read[role] or "")
        if said is None:
            names.append(word if _CODE.fullmatch(word) or seen is None else seen)
            continue
        if seen is not None and seen != said:
            remarks.append(f"{word!r} names {said}, but the texts look like {seen}: check task.{role}_language")
        names.append(seen if seen is not None and differ else said)
    return names, remarks
