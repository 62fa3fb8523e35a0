"""Scores of language models from prediction records. All sums are in corpus order, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.evaluation.metrics import bootstrap_interval, perplexity
from trainer.evaluation.predictions import Record, in_corpus_order


def score_tokens(records: Iterable[Mapping[str, Any]], resamples: int, *, words: bool) -> dict[str, Any]:
    """Return loss, perplexity and accuracy over the predicted tokens, and with `words` also `score_words`."""
    ordered = in_corpus_order(records)
    tokens = [record["tokens"] for record in ordered]
    losses = [float(record["loss"]) for record in ordered]
    scores = perplexity(losses, tokens, resamples=resamples)
    hits = math.fsum(record["correct"] for record in ordered)
    more = score_words(ordered, resamples) if words else {}
    return {**scores, **more, "accuracy": hits / sum(tokens), "rows": len(ordered)}


def score_words(records: Sequence[Record], resamples: int) -> dict[str, Any]:
    """Return metrics per word and per byte of the cleaned text, which do not depend on the tokenizer.

    The end of a text is part of its loss, but neither a word nor a byte.

    Args:
        records: of complete texts, in corpus order.
    """
    table = [
        (float(r["loss"]), len(r["target"].split()), len(r["target"].encode("utf-8", "surrogatepass"))) for r in records
    ]
    loss, words, size = (math.fsum(column) for column in zip(*table, strict=True))

    def bits(sums: Sequence[float]) -> float:
        return sums[0] / math.log(2) / max(1.0, sums[2])

    scores: dict[str, Any] = {
        "word_perplexity": math.exp(min(loss / max(1.0, words), 700.0)),
        "bits_per_byte": bits((loss, words, size)),
    }
    if resamples:
        scores["bits_per_byte_ci95"] = bootstrap_interval(table, bits, resamples)
    return scores
