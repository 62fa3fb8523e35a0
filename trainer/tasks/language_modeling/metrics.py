"""Scores of language models from prediction records. All sums are in corpus order, in float64."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import bootstrap_interval, perplexity
from trainer.evaluation.predictions import Record, ordered


def score_tokens(records: Iterable[Mapping[str, Any]], resamples: int, *, words: bool) -> dict[str, Any]:
    """Return loss, perplexity and accuracy over the predicted tokens, and with `words` also `score_words`."""
    losses, tokens, correct, sizes = array("d"), array("q"), array("d"), array("d")
    for record in ordered(records):
        losses.append(float(record["loss"]))
        tokens.append(record["tokens"])
        correct.append(record["correct"])
        if words:
            sizes.extend(_sizes(record))
    scores = perplexity(losses, tokens, resamples=resamples)
    more = _word_scores(np.frombuffer(sizes).reshape(-1, 3), resamples) if words else {}
    return {**scores, **more, "accuracy": math.fsum(correct) / sum(tokens), "rows": len(losses)}


def score_words(records: Sequence[Record], resamples: int) -> dict[str, Any]:
    """Return metrics per word and per byte of the cleaned text, which do not depend on the tokenizer.

    The end of a text is part of its loss, but neither a word nor a byte.

    Args:
        records: of complete texts, in corpus order.
    """
    return _word_scores(np.array([_sizes(record) for record in records], dtype=np.float64), resamples)


def _sizes(record: Mapping[str, Any]) -> tuple[float, int, int]:
    """Return loss, words and bytes of a text."""
    text = record["target"]
    return float(record["loss"]), len(text.split()), len(text.encode("utf-8", "surrogatepass"))


def _word_scores(table: npt.NDArray[np.float64], resamples: int) -> dict[str, Any]:
    loss, words, size = (math.fsum(column) for column in table.T)

    def bits(sums: Sequence[float]) -> float:
        return sums[0] / math.log(2) / max(1.0, sums[2])

    scores: dict[str, Any] = {
        "word_perplexity": math.exp(min(loss / max(1.0, words), 700.0)),
        "bits_per_byte": bits((loss, words, size)),
    }
    if resamples:
        scores["bits_per_byte_ci95"] = bootstrap_interval(table, bits, resamples)
    return scores
