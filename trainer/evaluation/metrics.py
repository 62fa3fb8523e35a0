"""Scores of translations: BLEU, chrF, TER and perplexity, each with a bootstrap interval.

The arithmetic of BLEU, chrF and TER is sacreBLEU's (Post 2018). Intervals are percentiles of Koehn's (2004) bootstrap:
rows are drawn with replacement from a fixed seed, as sacreBLEU draws them, the same rows for every metric. All sums are
taken in corpus order, in float64: a score does not depend on the number of ranks.

`trainer.evaluation.evaluate_metrics` offers the same scores as metrics of the library `evaluate`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics import CHRF

from trainer.errors import DataError, NumericsError
from trainer.evaluation.languages import bleu_of, ter_of, warn_of_script
from trainer.evaluation.predictions import Record, checked_records
from trainer.evaluation.resampling import (
    RESAMPLES,
    SEED,
    WINDOW,
    Resampled,
    Score,
    Table,
    bootstrap_interval,
    perplexity,
    resampled_losses,
)


def bleu(
    predictions: list[str],
    references: list[str],
    language: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Score]:
    """Corpus BLEU (Papineni et al. 2002) in percent: sacreBLEU's defaults, cased, with the tokenizer of the language.

    Args:
        predictions, references: one text per row.
        language: name or tag of the target language.

    Returns:
        bleu, bleu_ci95, signature, length_ratio: tokens of all predictions over those of all references.
    """
    scorer = bleu_of(language)
    score, interval = _corpus_score(scorer, _statistics(scorer, predictions, references), resamples, seed)
    return _bleu(scorer, score, interval)


def _bleu(scorer: Any, score: Any, interval: list[float] | None) -> dict[str, Score]:
    signature, ratio = str(scorer.get_signature()), float(score.ratio)
    return {"bleu": float(score.score), "signature": signature, "length_ratio": ratio, **_named("bleu", interval)}


def chrf(
    predictions: list[str], references: list[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Score]:
    """Corpus chrF2 (Popović 2015) in percent: character 1- to 6-grams, recall counts twice."""
    scorer = CHRF()
    score, interval = _corpus_score(scorer, _statistics(scorer, predictions, references), resamples, seed)
    return {"chrf": float(score.score), **_named("chrf", interval)}


def ter(
    predictions: list[str],
    references: list[str],
    language: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Score]:
    """Translation edit rate (Snover et al. 2006) in percent of the reference's words, uncased; lower is better."""
    scorer = ter_of(language)
    score, interval = _corpus_score(scorer, _statistics(scorer, predictions, references), resamples, seed)
    return {"ter": float(score.score), **_named("ter", interval)}


# The methods of scorers below are sacreBLEU's inner ones: corpus_score gives half the width of an interval around the
# mean of the resamples, not its ends, and takes all texts at once. The tests hold them against corpus_score.


def _statistics(scorer: Any, predictions: Sequence[str], references: Sequence[str]) -> Table:
    """Return the counts of each row with one reference, (rows, k), of which sacreBLEU makes a score."""
    table = np.array(scorer._extract_corpus_statistics(predictions, [references]))
    return table.astype(np.int32 if table.dtype.kind == "i" else np.float64)


def _corpus_score(scorer: Any, rows: Table, resamples: int, seed: int) -> tuple[Any, list[float] | None]:
    """Return sacreBLEU's score of a corpus from the counts of its rows, and the interval around it."""
    score = scorer._aggregate_and_compute([rows.sum(axis=0).tolist()])
    if not resamples:
        return score, None
    return score, bootstrap_interval(
        rows, lambda sums: float(scorer._compute_score_from_stats(sums).score), resamples, seed
    )


def _named(metric: str, interval: list[float] | None) -> dict[str, Score]:
    return {} if interval is None else {f"{metric}_ci95": interval}


def score_translation(
    records: Iterable[Mapping[str, Any]],
    *,
    resamples: int = RESAMPLES,
    language: str | None = None,
    tokenizer: str = "auto",
) -> dict[str, Score]:
    """Return all scores of a split from its prediction records (`predictions.py`), in any order.

    Args:
        records: with `id`, `target`, `prediction`, `loss` (summed over the row's target tokens) and `tokens`. Texts are
            in memory for a window of rows at a time, and some numbers for all rows.
        resamples: behind each interval; 0 = no intervals.
        language: name or tag of the target language. It decides BLEU's tokenizer, which the signature names.
        tokenizer: `evaluation.bleu_tokenizer`.

    Returns:
        bleu, chrf, ter (percent), loss (mean token cross-entropy, nats), perplexity; an interval [low, high] as
        `*_ci95` beside each but loss; signature (of BLEU), length_ratio (translations over references), rows.

    Raises:
        DataError: no records, an id missing or twice, or a value missing or of the wrong type; names id and key.
        NumericsError: a loss is NaN or Inf; names the id.
    """
    counted = _Counted.of(records, language, tokenizer)
    warn_of_script(language, counted.references, tokenizer)
    scores: dict[str, Score] = {}
    for name, scorer in counted.scorers.items():
        score, interval = _corpus_score(scorer, counted.tables[name], resamples, SEED)
        own = _bleu(scorer, score, interval) if name == "bleu" else {name: float(score.score), **_named(name, interval)}
        scores |= own
    losses = perplexity(counted.losses, counted.tokens, resamples=resamples)
    return scores | losses | {"rows": len(counted.losses)}


class _Counted(NamedTuple):
    """What the scores of translations follow from: numbers of each row, and the first references."""

    scorers: dict[str, Any]
    tables: dict[str, Table]
    losses: Sequence[float]
    tokens: Sequence[int]
    references: list[str]

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], language: str | None, tokenizer: str) -> _Counted:
        scorers = {"bleu": bleu_of(language, tokenizer), "chrf": CHRF(), "ter": ter_of(language)}
        counts: dict[str, list[Table]] = {name: [] for name in scorers}
        losses, tokens, first = array("d"), array("q"), list[str]()
        found = checked_records(records, _check)
        while window := list(islice(found, WINDOW)):
            predictions, references = ([record[key] for record in window] for key in ("prediction", "target"))
            first = first or references
            for name, scorer in scorers.items():
                counts[name].append(_statistics(scorer, predictions, references))
            losses.extend(float(record["loss"]) for record in window)
            tokens.extend(record["tokens"] for record in window)
        return cls(scorers, {name: np.concatenate(counts.pop(name)) for name in scorers}, losses, tokens, first)


def resampled_translation(
    records: Iterable[Mapping[str, Any]], language: str | None = None, tokenizer: str = "auto"
) -> Resampled:
    """Return BLEU, chrF, TER, loss and perplexity as functions of how often each row is drawn."""
    counted = _Counted.of(records, language, tokenizer)
    tables = {name: table.astype(np.float64) for name, table in counted.tables.items()}
    losses = resampled_losses(counted.losses, counted.tokens)

    def scores(weights: Table) -> dict[str, float]:
        sums = {name: (weights @ table).tolist() for name, table in tables.items()}
        of = {name: float(s._compute_score_from_stats(sums[name]).score) for name, s in counted.scorers.items()}
        return of | losses(weights)

    return scores


def _check(record: Record) -> None:
    """Refuses a record that cannot be scored."""
    for key, kind in (("prediction", str), ("target", str), ("loss", (int, float)), ("tokens", int)):
        value = record.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            problem = f"is {value!r}" if key in record else "is missing"
            raise DataError(f"prediction {record['id']!r}: {key} {problem}; translation needs a text or number there")
    if record["tokens"] < 1:
        raise DataError(f"prediction {record['id']!r}: tokens is {record['tokens']}; even an empty target has [EOS]")
    if not math.isfinite(record["loss"]):
        raise NumericsError(f"prediction {record['id']!r}: loss is {record['loss']}; the weights have diverged")
