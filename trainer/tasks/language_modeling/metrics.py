"""Scores of language models from prediction records. All sums are in corpus order, in float64."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import NumericsError
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import Resampled, bootstrap_interval, perplexity, resampled_losses


def score_tokens(records: Iterable[Mapping[str, Any]], resamples: int, *, words: bool) -> dict[str, Any]:
    """Return loss, perplexity and accuracy over the predicted tokens, and with `words` also those per word and byte.

    Those per word and byte of the cleaned text do not depend on the tokenizer. The end of a text is part of its loss,
    but neither a word nor a byte.

    Args:
        records: in any order; with `words` of complete texts.
        resamples: behind each interval; 0 = none.

    Raises:
        DataError: no records, or an id missing or twice.
        NumericsError: a loss is NaN or Inf; names the id.
    """
    losses, tokens, correct, sizes = _columns(records, words)
    scores = perplexity(losses, tokens, resamples=resamples)
    more = _word_scores(np.frombuffer(sizes).reshape(-1, 3), resamples) if words else {}
    return {**scores, **more, "accuracy": math.fsum(correct) / sum(tokens), "rows": len(losses)}


def _columns(
    records: Iterable[Mapping[str, Any]], words: bool
) -> tuple[Sequence[float], Sequence[int], Sequence[float], array[float]]:
    """Return losses, tokens, right tokens, and with `words` what `_sizes` returns, of the rows in corpus order."""
    losses, tokens, correct, sizes = array("d"), array("q"), array("d"), array("d")
    for record in checked_records(records, _check):
        losses.append(float(record["loss"]))
        tokens.append(record["tokens"])
        correct.append(record["correct"])
        if words:
            sizes.extend(_sizes(record))
    return losses, tokens, correct, sizes


def resampled_tokens(records: Iterable[Mapping[str, Any]], *, words: bool) -> Resampled:
    """Return the scores of `score_tokens` as functions of how often each row is drawn."""
    losses, tokens, correct, sizes = _columns(records, words)
    of_tokens = resampled_losses(losses, tokens)
    right, count, table = np.asarray(correct), np.asarray(tokens, dtype=float), np.frombuffer(sizes).reshape(-1, 3)

    def scores(weights: npt.NDArray[np.float64]) -> dict[str, float]:
        more = _of_words(*(weights @ table).tolist()) if words else {}
        return of_tokens(weights) | more | {"accuracy": float(weights @ right / max(1.0, weights @ count))}

    return scores


def _of_words(loss: float, words: float, size: float) -> dict[str, float]:
    """Return the perplexity of a word and the bits of a byte, from sums."""
    bits = loss / math.log(2) / max(1.0, size)
    return {"word_perplexity": math.exp(min(loss / max(1.0, words), 700.0)), "bits_per_byte": bits}


def _sizes(record: Mapping[str, Any]) -> tuple[float, int, int]:
    """Return loss, words and bytes of a text."""
    text = record["target"]
    return float(record["loss"]), len(text.split()), len(text.encode("utf-8", "surrogatepass"))


def _check(record: Record) -> None:
    if not math.isfinite(record["loss"]):
        raise NumericsError(f"prediction {record['id']!r}: loss is {record['loss']}; the weights have diverged")


def _word_scores(table: npt.NDArray[np.float64], resamples: int) -> dict[str, Any]:
    scores: dict[str, Any] = _of_words(*(math.fsum(column) for column in table.T))
    if resamples:
        scores["bits_per_byte_ci95"] = bootstrap_interval(
            table, lambda sums: _of_words(*sums)["bits_per_byte"], resamples
        )
    return scores
