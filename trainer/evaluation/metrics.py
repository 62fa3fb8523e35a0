"""Scores of translations: BLEU, chrF, TER and perplexity, each with a bootstrap interval.

The classes are `evaluate.Metric`s of our own. They need no network (`evaluate.load` fetches scripts of the Hub and runs
them) and no disk (the library's class makes cache folders and lock files, over which processes can meet). The
arithmetic of BLEU, chrF and TER is sacreBLEU's (Post 2018). Intervals are percentiles of Koehn's (2004) bootstrap: rows
are drawn with replacement from a fixed seed, as sacreBLEU draws them, the same rows for every metric.

All sums are taken in corpus order, in float64: a score does not depend on the number of ranks. Import this module where
it is used: `evaluate` takes seconds to import, because it brings in the pipelines of transformers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sacrebleu.metrics import CHRF

from trainer.errors import DataError, NumericsError
from trainer.evaluation.languages import bleu_of, ter_of, warn_of_script
from trainer.evaluation.predictions import Record, checked_records

RESAMPLES = 1000
SEED = 12345  # sacreBLEU's own default
LARGEST_EXPONENT = 709.0  # exp of more is no float64

Score = float | int | str | list[float] | list[str]


def bootstrap_interval(
    statistics: npt.ArrayLike,
    score: Callable[[Sequence[float]], float],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[float]:
    """95% percentile interval of a score that is a function of summed row statistics.

    Args:
        statistics: [rows, k] numbers whose sums over rows decide the score.
        score: from k sums to the score.

    Returns:
        [low, high]
    """
    table = np.asarray(statistics, dtype=np.float64)  # [rows, k]
    rows = len(table)
    draw = np.random.default_rng(seed)
    return percentiles(score(table[draw.integers(0, rows, rows)].sum(axis=0).tolist()) for _ in range(resamples))


def percentiles(scores: Iterable[float]) -> list[float]:
    """[low, high] of the scores of resamples, all finite: those with a 40th of all below and above."""
    found = sorted(scores)
    cut = len(found) // 40
    return [found[cut], found[-1 - cut]]


class LocalMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate.Metric` that holds its data in memory and touches neither network nor disk."""

    columns: ClassVar[dict[str, str]] = {"predictions": "string", "references": "string"}
    """Name and type of what `compute` takes, one value per row."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True, seed=SEED)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(kind) for name, kind in type(self).columns.items()})
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation="", features=features)

    def _build_data_dir(self) -> str:
        # The library creates this folder even when everything stays in memory; nothing is ever written there.
        return str(Path(self._data_dir_root, self.name))


class CorpusMetric(LocalMetric):
    """A sacreBLEU metric of one reference per row: `compute(predictions=[…], references=[…])`.

    Args:
        language: name or tag of the target language; decides how texts are split into words.
    """

    key: ClassVar[str]

    def __init__(self, language: str | None = None) -> None:
        super().__init__()
        self._language = language

    @abstractmethod
    def _scorer(self) -> Any:
        """The sacreBLEU metric."""

    def _compute(
        self, *, predictions: list[str], references: list[str], resamples: int = RESAMPLES, seed: int = SEED
    ) -> dict[str, Score]:
        scorer = self._scorer()
        # These three methods are sacreBLEU's inner ones: corpus_score gives half the width of an interval around the
        # mean of the resamples, not its ends. The tests hold them against corpus_score.
        rows = scorer._extract_corpus_statistics(predictions, [references])
        total = scorer._aggregate_and_compute(rows)
        scores: dict[str, Score] = {self.key: float(total.score), **self._details(scorer, total)}
        if resamples:
            scores[f"{self.key}_ci95"] = bootstrap_interval(
                rows, lambda sums: float(scorer._compute_score_from_stats(sums).score), resamples, seed
            )
        return scores

    def _details(self, scorer: Any, total: Any) -> dict[str, Score]:
        """What the metric says besides its score."""
        return {}


class Bleu(CorpusMetric):
    """Corpus BLEU (Papineni et al. 2002) in percent: sacreBLEU's defaults, cased, with the language's tokenizer."""

    key = "bleu"

    def _scorer(self) -> Any:
        return bleu_of(self._language)

    def _details(self, scorer: Any, total: Any) -> dict[str, Score]:
        """The signature, and the length of all translations over that of all references, in BLEU's tokens."""
        return {"signature": str(scorer.get_signature()), "length_ratio": float(total.ratio)}


class Chrf(CorpusMetric):
    """Corpus chrF2 (Popović 2015) in percent: character 1- to 6-grams, recall counts twice."""

    key = "chrf"

    def _scorer(self) -> Any:
        return CHRF()


class Ter(CorpusMetric):
    """Translation edit rate (Snover et al. 2006) in percent of the reference's words, uncased; lower is better."""

    key = "ter"

    def _scorer(self) -> Any:
        return ter_of(self._language)


class Perplexity(LocalMetric):
    """Token cross-entropy (nats) and its exponential: `compute(losses=[row sums], tokens=[row counts])`."""

    columns: ClassVar[dict[str, str]] = {"losses": "float64", "tokens": "int64"}

    def _compute(
        self, *, losses: list[float], tokens: list[int], resamples: int = RESAMPLES, seed: int = SEED
    ) -> dict[str, Score]:
        loss = math.fsum(losses) / sum(tokens)
        scores: dict[str, Score] = {"loss": loss, "perplexity": _perplexity(loss)}
        if resamples:
            table = np.array([losses, tokens], dtype=np.float64).T  # [rows, 2]
            scores["perplexity_ci95"] = bootstrap_interval(
                table, lambda sums: _perplexity(sums[0] / sums[1]), resamples, seed
            )
        return scores


def _perplexity(loss: float) -> float:
    """Return exp(loss), at most 8e307, so that it is a number in JSON for a diverged model."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def score_translation(
    records: Iterable[Mapping[str, Any]], *, resamples: int = RESAMPLES, language: str | None = None
) -> dict[str, Score]:
    """Return all scores of a split from its prediction records (`predictions.py`), in any order.

    Args:
        records: with `id`, `target`, `prediction`, `loss` (summed over the row's target tokens) and `tokens`.
        resamples: behind each interval; 0 = no intervals.
        language: name or tag of the target language. It decides BLEU's tokenizer, which the signature names.

    Returns:
        bleu, chrf, ter (percent), loss (mean token cross-entropy, nats), perplexity; an interval [low, high] as
        `*_ci95` beside each but loss; signature (of BLEU), length_ratio (translations over references), rows.

    Raises:
        DataError: no records, an id missing or twice, or a value missing or of the wrong type; names id and key.
        NumericsError: a loss is NaN or Inf; names the id.
    """
    ordered = checked_records(records, _check)
    texts = {
        "predictions": [record["prediction"] for record in ordered],
        "references": [record["target"] for record in ordered],
    }
    warn_of_script(language, texts["references"])
    scores: dict[str, Score] = {}
    for metric in (Bleu(language), Chrf(language), Ter(language)):
        scores |= metric.compute(**texts, resamples=resamples)
    scores |= Perplexity().compute(
        losses=[float(record["loss"]) for record in ordered],
        tokens=[record["tokens"] for record in ordered],
        resamples=resamples,
    )
    return scores | {"rows": len(ordered)}


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
