"""Suggest translation for rows with a text in two languages."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.profile import Table
from trainer.models.suggested import scratch_transformer
from trainer.task.suggestion import Suggestion, renamed, text_columns

LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "en": "English", "es": "Spanish", "et": "Estonian",
    "fi": "Finnish", "fr": "French", "hi": "Hindi", "hu": "Hungarian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
SIDES = ({"src", "source"}, {"trg", "tgt", "target"})


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    languages = table.languages
    sides = _sides(table, columns)
    if sides is None:
        return None
    roles = dict(zip(("src", "trg"), sides, strict=True))
    codes = {role: (languages or roles)[role].rpartition(".")[2].lower() for role in roles}
    names = [LANGUAGES.get(code, code) for code in codes.values()]
    model, tokenizer = scratch_transformer(table.rows)
    return Suggestion(
        fit=0.9,
        why=f"{names[0]} in column {sides[0]!r}, {names[1]} in column {sides[1]!r}"
        if languages is None
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
            "task.trg_language": "names are for reports; zh, ja and ko change how BLEU splits words",
            "tokenizer": "trained on both sides of the training rows; shared: false trains one on each",
            "model.kind": f"random weights, sized for {table.rows:,} pairs; --task text_to_text fine-tunes T5",
            "optim.averaging": "the model of the last evaluations, averaged",
            "evaluation.beam_size": "1 is faster",
        },
    )


def _sides(table: Table, columns: Mapping[str, str]) -> tuple[str, str] | None:
    texts = [column.name for column in table.columns.values() if column in text_columns(table)]
    if {"src", "trg"} <= columns.keys():
        return columns["src"], columns["trg"]
    last = {name: name.rpartition(".")[2].strip().lower() for name in texts}
    named = [[name for name in texts if last[name] in side] for side in SIDES]
    if all(len(names) == 1 for names in named):
        return named[0][0], named[1][0]
    coded = [name for name in texts if last[name] in LANGUAGES or last[name].title() in LANGUAGES.values()]
    if len(coded) != 2:
        return None
    first, second = sorted(coded, key=lambda name: last[name] in ("en", "english"))
    return first, second
