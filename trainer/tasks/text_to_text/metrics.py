"""ROUGE (Lin 2004): n-grams and longest common subsequences shared with the reference, by the `rouge_score` package.

Words are runs of letters and digits of any script, and each ideograph and kana. The package's own are those of ASCII,
so that "Männer" would be two and "日本" none; on English both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.evaluation.metrics import bootstrap_interval
from trainer.evaluation.predictions import in_corpus_order

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
    from rouge_score.rouge_scorer import RougeScorer

    scorer, ordered = RougeScorer(list(KINDS), tokenizer=Words()), in_corpus_order(records)
    rows = [scorer.score(record["target"], record["prediction"]) for record in ordered]

    def mean(sums: Sequence[float]) -> float:
        return sums[0] / sums[1]

    scores: dict[str, Any] = {}
    for kind in KINDS:
        table = [(row[kind].fmeasure, 1.0) for row in rows]
        scores[kind] = sum(value for value, _ in table) / len(table)
        if resamples:
            scores[f"{kind}_ci95"] = bootstrap_interval(table, mean, resamples)
    return scores
