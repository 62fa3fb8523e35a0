"""Which texts a language model finds hard: rows by their loss per token, loss by length, continuations to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.report.errors import Measure, length_buckets, words
from trainer.report.inputs import write_lines
from trainer.rundir import write_json

FEW_TOKENS = 8  # of shorter texts the loss per token is chance


def judged_texts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every row, the hardest first: id, text, words, tokens, and loss (nats) and perplexity per token."""
    rows = [
        {
            "id": record["id"],
            "text": record["input"],
            "words": words(record),
            "tokens": record["tokens"],
            "loss_per_token": record["loss"] / max(1, record["tokens"]),
            "perplexity": _perplexity([record]),
        }
        for record in records
    ]
    return sorted(rows, key=lambda row: -row["loss_per_token"])


def loss_by_length(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows, and the perplexity of their tokens together, for each bucket of length in words."""
    return [
        {"from": low, "to": high, "rows": len(rows), "perplexity": _perplexity(rows)}
        for low, high, rows in length_buckets(records)
    ]


def extremes(rows: Sequence[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The hardest and the easiest texts of a few tokens or more; all where there are no such."""
    known = [row for row in rows if row["tokens"] >= FEW_TOKENS] or list(rows)
    hardest = known[:count]
    return hardest, known[len(hardest) :][-count:][::-1]


def write_texts(records: Sequence[Record], folder: Path) -> list[Path]:
    """errors.jsonl (every row, the hardest first) and errors.json (perplexity by length, extremes) in `folder`."""
    rows = judged_texts(records)
    hardest, easiest = extremes(rows, 10)
    summary = {
        "rows": len(rows),
        "perplexity": _perplexity(records),
        "by_length": loss_by_length(records),
        "hardest": [row["id"] for row in hardest],
        "easiest": [row["id"] for row in easiest],
    }
    write_json(folder / "errors.json", summary)
    return [write_lines(folder / "errors.jsonl", rows), folder / "errors.json"]


def _perplexity(records: Sequence[Record]) -> float:
    loss = math.fsum(record["loss"] for record in records) / max(1, sum(record["tokens"] for record in records))
    return math.exp(min(loss, 700.0))


PERPLEXITY: Measure = ("perplexity", _perplexity)  # of some rows, for `find_shared_texts`
