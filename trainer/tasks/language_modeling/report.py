"""Report and model card of language models: rows by their loss per token, loss by length, and continuations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.files import read_json
from trainer.report.rows import length_buckets, shared_rows, words
from trainer.report.task_report import Measure, Section, TaskReport, write_errors
from trainer.tasks.language_modeling.metrics import resampled_tokens

CONTINUE = """\
from transformers import pipeline

write = pipeline("text-generation", model="{path}")
print(write("A text.", return_full_text=False))"""
FILL = """\
from transformers import pipeline

fill = pipeline("fill-mask", model="{path}")
print(fill(f"A {{fill.tokenizer.mask_token}} text."))"""
FEW_TOKENS = 8  # the loss per token of shorter texts is mostly chance
SHOWN, LISTED = 8, 10  # hardest texts in the page and in errors.json, and as many of the easiest


class LanguageModelingReport(TaskReport):
    """Of both objectives."""

    folders = (Path(__file__).parent,)
    bench_baseline = "the library's own attention (greedy)"  # texts are not padded to data.max_length

    @property
    def causal(self) -> bool:
        return bool(self.recipe["task"].get("objective") == "causal")

    @property
    def pipeline(self) -> str:
        return "text-generation" if self.causal else "fill-mask"

    @property
    def auto_class(self) -> str:
        return "AutoModelForCausalLM" if self.causal else "AutoModelForMaskedLM"

    def usage(self, path: str, pooling: str | None) -> str:
        return (CONTINUE if self.causal else FILL).format(path=path)

    rows = cached_property(lambda self: scored_rows(self.records))
    _by_length = cached_property(lambda self: perplexity_by_length(self.records))

    def _extremes(self, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The hardest and the easiest texts of a few tokens or more; of all texts if there are no such."""
        known = [row for row in self.rows if row["tokens"] >= FEW_TOKENS] or self.rows
        return known[:count], known[count:][-count:][::-1]

    def files(self) -> list[Callable[[], list[Path]]]:
        return [self._write_errors]

    def _write_errors(self) -> list[Path]:
        hardest, easiest = ([row["id"] for row in rows] for rows in self._extremes(LISTED))
        total = {"rows": len(self.rows), "perplexity": perplexity(self.records), "by_length": self._by_length}
        return write_errors(self.folder, self.rows, {**total, "hardest": hardest, "easiest": easiest})

    def sections(self, with_rows: bool) -> list[Section]:
        continued = (read_json(self.folder / "samples.json") or {}).get("rows", []) if with_rows else []
        data = {
            "continued": [*map(_continuation, continued)],
            "groups": self._extremes(SHOWN) if with_rows else ([], []),
            "by_length": self._by_length,
            "causal": self.causal,
            "shared": shared_rows(self),
        }
        return [Section("texts", "Texts worth reading", "texts.html.jinja", data)]

    def measure(self) -> Measure:
        return Measure("perplexity", "Perplexity", "{:.1f}", perplexity, "min")

    def resampled(self, records: Iterable[Record]) -> Resampled:
        return resampled_tokens(records, words="bits_per_byte" in self.scores)

    def compared(self) -> dict[str, Any]:
        return {**super().compared(), "task.objective": "causal" if self.causal else "masked"}

    def goal(self) -> tuple[str, str]:
        return "predict the next token of a text" if self.causal else "predict masked tokens", "texts"


def scored_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every row, the hardest first: id, text, words, tokens, and loss (nats) and perplexity per token."""
    rows = [
        {
            "id": record["id"],
            "text": record["input"],
            "words": words(record),
            "tokens": record["tokens"],
            "loss_per_token": record["loss"] / max(1, record["tokens"]),
            "perplexity": perplexity([record]),
        }
        for record in records
    ]
    return sorted(rows, key=lambda row: -row["loss_per_token"])


def perplexity_by_length(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows and perplexity of each bucket of lengths in words."""
    return [{**bucket, "rows": len(rows), "perplexity": perplexity(rows)} for bucket, rows in length_buckets(records)]


def perplexity(records: Sequence[Record]) -> float:
    """Perplexity of the tokens of some rows together."""
    loss = math.fsum(record["loss"] for record in records) / max(1, sum(record["tokens"] for record in records))
    return math.exp(min(loss, 700.0))


def _continuation(row: dict[str, str]) -> dict[str, Any]:
    texts = {"Beginning": row["prompt"], "The model": row["continuation"], "The text": row["reference"]}
    return {"lines": [(name, [(text, "")]) for name, text in texts.items()], "note": row["id"]}
