"""ROUGE (Lin 2004): n-grams and longest common subsequences shared with the reference, by the `rouge_score` package.

Words are runs of letters and digits of any script, and each ideograph and kana. The package's own are those of ASCII,
so that "Männer" would be two and "日本" none; on English both are the same.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.predictions import ordered
from trainer.evaluation.resampling import Resampled, bootstrap_interval

KINDS = ("rouge1", "rouge2", "rougeL")
_ALONE = r"\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_ALONE}]|(?:(?![{_ALONE}])[^\\W_])+")


class Words:
    """The tokenizer that RougeScorer is given."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def score_rouge(records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    """rouge1, rouge2 and rougeL: mean F1 of the rows, 0 to 1, without stemming, each with its interval.

    Args:
        records: with `id`, `target` and `prediction`.
        resamples: behind each interval; 0 = none.
    """
    values = _values(records)

    def mean(sums: Sequence[float]) -> float:
        return sums[0] / sums[1]

    scores: dict[str, Any] = {}
    for kind in KINDS:
        scores[kind] = sum(values[kind]) / len(values[kind])
        if resamples:
            table = np.column_stack([values[kind], np.ones(len(values[kind]))])
            scores[f"{kind}_ci95"] = bootstrap_interval(table, mean, resamples)
    return scores


def _values(records: Iterable[Mapping[str, Any]]) -> dict[str, array[float]]:
    """Return the F1 of each row by kind, in corpus order."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer, values = RougeScorer(list(KINDS), tokenizer=Words()), {kind: array("d") for kind in KINDS}
    for record in ordered(records):
        row = scorer.score(record["target"], record["prediction"])
        for kind in KINDS:
            values[kind].append(row[kind].fmeasure)
    return values


def resampled_rouge(records: Iterable[Mapping[str, Any]]) -> Resampled:
    """Return the scores of `score_rouge` as functions of how often each row is drawn."""
    table = {kind: np.frombuffer(values) for kind, values in _values(records).items()}
    return lambda weights: {kind: float(weights @ values / weights.sum()) for kind, values in table.items()}
