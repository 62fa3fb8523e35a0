"""Suggest text to text for rows with an input and an output text."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.language import NAMES, UNSPACED
from trainer.data.profile import Table
from trainer.models.suggested import TEXT_TO_TEXT, is_here, is_offline
from trainer.task.suggestion import Suggestion, renamed, text_columns

SMALL = {"kind": "pretrained", "architecture": "t5", "size": "small"}
# Names of input and output, and the prefix with which T5 was trained on such rows.
SIDES = (
    ("document", "summary", "summarize: "),
    ("article", "highlights", "summarize: "),
    ("text", "summary", "summarize: "),
    ("dialogue", "summary", "summarize: "),
    ("input", "output", ""),
    ("prompt", "completion", ""),
    ("prompt", "response", ""),
    ("instruction", "output", ""),
    ("instruction", "response", ""),
    ("question", "answer", ""),
    ("source", "target", ""),
    ("src", "trg", ""),
    ("src", "tgt", ""),
)


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    last = {column.name.rpartition(".")[2].strip().lower(): column.name for column in text_columns(table)}
    named = [(last[a], last[b], prefix) for a, b, prefix in SIDES if a in last and b in last]
    if {"src", "trg"} <= columns.keys():
        named = [(columns["src"], columns["trg"], "")]
    if not named:
        return None
    source, target, prefix = named[0]
    offline = is_offline() and not is_here(TEXT_TO_TEXT)
    language = next((c.language for c in table.columns.values() if c.name == target and c.language in UNSPACED), None)
    return Suggestion(
        fit=0.75,
        why=f"texts in column {source!r}, their outputs in column {target!r}",
        task={
            "kind": "text_to_text",
            **({"prefix": prefix} if prefix else {}),
            **({"trg_language": NAMES[language]} if language else {}),
        },
        columns=renamed({"src": source, "trg": target}),
        inputs=(source, target),
        pretrained=None if offline else TEXT_TO_TEXT,
        model=SMALL if offline else {},
        tokenizer={"train": {"kind": "unigram", "vocab_size": 8000}} if offline else None,
        evaluation={"beam_size": 4},
        notes={
            "task.prefix": "before every input; T5 knows the task by it",
            "loop.early_stopping": "selects the checkpoint; bleu and rougeL are possible, and need decoding",
            "model.architecture": f"init chose random weights, as the Hub was out of reach; better: {TEXT_TO_TEXT}",
            "evaluation.beam_size": "1 is faster",
        },
    )
