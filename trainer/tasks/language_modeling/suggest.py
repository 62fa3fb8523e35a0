"""Suggest causal language modeling, which generates text, for rows that hold one text and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.profile import Table
from trainer.models.suggested import GENERATOR, is_here, is_offline
from trainer.task.suggestion import Suggestion, renamed, text_columns

SMALL = {"kind": "pretrained", "architecture": "gpt2", "size": "small"}


def suggest(table: Table, columns: Mapping[str, str]) -> Suggestion | None:
    """Return the suggestion for a table. `columns`: roles that the user has set."""
    texts = text_columns(table)
    if "text" not in columns and not texts:
        return None
    text = columns.get("text", texts[0].name if texts else "")
    alone = table.parallel or len(table.columns) == 1
    offline = is_offline() and not is_here(GENERATOR)
    return Suggestion(
        fit=0.5 if alone else 0.1,
        why="one text a line" if table.parallel else f"texts in column {text!r}",
        task={"kind": "language_modeling", "objective": "causal"},
        columns=renamed({"text": text}),
        inputs=(text,),
        pretrained=None if offline else GENERATOR,
        model=SMALL if offline else {},
        tokenizer={"train": {"kind": "byte_bpe", "vocab_size": 8000}} if offline else None,
        optim={"schedule": "cosine"},
        packed=True,
        notes={
            "task.objective": "causal: predict the next token; mlm: masked words, to pretrain an encoder",
            "model.architecture": f"init chose random weights, as the Hub was out of reach; better: {GENERATOR}",
        },
    )
