"""What an artifact's answers on the whole split cost, beside the trained weights': by what a task calls its artifact.

A judge gets both sides' answers of the same rows, and gives checks and the rows that differ most.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.export.rows import FEW, Row
from trainer.recipe.sections import GatesConfig
from trainer.task.base import Record

Check = dict[str, Any]
HUGE = 1e30
SHOWN = 10  # rows that differ most
CUT = 100  # characters of a row that are shown


@dataclass
class Comparison:
    """Both sides' answers.

    Attributes:
        rows: every row of the split, with what the weights answer.
        found: what the artifact answers, in the same order.
        exact: whether it has to be the same (fp32), or may cost a little.
        resamples: behind the intervals.
        worst: rows that differ most; a judge writes them.
        language: of the targets, for BLEU; None = unknown, or no translation.
    """

    rows: Sequence[Row]
    found: Sequence[Record]
    exact: bool
    limits: GatesConfig
    resamples: int
    worst: list[Record] = field(default_factory=list)
    language: str | None = None

    def show(self, gaps: Sequence[float], key: str) -> None:
        order = [i for i in np.argsort([-gap for gap in gaps], kind="stable")[:SHOWN].tolist() if gaps[i] > 0]
        self.worst = [
            {"id": self.rows[i].id, "input": self.rows[i].input[:CUT], "difference": gaps[i],
             "reference": self.rows[i].answer[key], "artifact": self.found[i][key]}
            for i in order
        ]  # fmt: skip

    def paired(
        self, totals: Any, table: Any, score: Callable[[Sequence[float]], float], limit: float | None, cost: float
    ) -> Check:
        """Artifact against weights on the same rows: the point estimate `cost` decides; `score`: of resamples."""
        from trainer.evaluation.metrics import bootstrap_interval

        artifact, reference = map(float, totals)
        check = {
            "passed": limit is None or cost <= limit + 1e-9,  # 0.905 - 0.9 is a little more than 0.005
            "artifact": artifact,
            "reference": reference,
            "difference": artifact - reference,
            "difference_ci95": bootstrap_interval(table, score, self.resamples),
            "limit": limit,
        }
        few = len(self.rows)
        return check | ({"note": f"only {few:,} rows (under {FEW:,}): the interval is wide"} if few < FEW else {})

    def fall(self, totals: Any) -> float:
        """By how much a score has fallen; of what has to be the same, by how much it differs."""
        artifact, reference = map(float, totals)
        return abs(artifact - reference) if self.exact else reference - artifact


def classes(case: Comparison) -> dict[str, Check]:
    gaps, sure, other = [], 0, 0
    for row, made in zip(case.rows, case.found, strict=True):
        first, second = sorted(row.answer["probabilities"].values(), reverse=True)[:2]
        certain, differs = first - second > case.limits.margin, made["label"] != row.answer["label"]
        sure, other = sure + certain, other + (certain and differs)
        gaps.append(gap(made["probabilities"][row.answer["label"]], row.answer["confidence"]))
    case.show(gaps, "label")
    differ = [made["label"] != row.answer["label"] for row, made in zip(case.rows, case.found, strict=True)]
    same = {"passed": not (case.exact and other), "differ": sum(differ), "differ_beyond_margin": other,
            "rows_beyond_margin": sure, "margin": case.limits.margin, "limit": 0 if case.exact else None,
            "largest_probability_difference": max(gaps)}  # fmt: skip
    hits = [
        [float(made["label"] == row.target), float(row.answer["label"] == row.target)]
        for row, made in zip(case.rows, case.found, strict=True)
    ]
    score = lambda sums: (sums[0] - sums[1]) / sums[2]  # noqa: E731
    totals = np.sum(hits, axis=0) / len(hits)
    limit = None if case.exact else case.limits.int8_accuracy
    accuracy = case.paired(totals, [[*pair, 1.0] for pair in hits], score, limit, case.fall(totals))
    return {"classes": same, "accuracy": accuracy}


def translations(case: Comparison) -> dict[str, Check]:
    from trainer.evaluation.languages import bleu_of

    made = [record["prediction"] for record in case.found]
    ours = [row.answer["prediction"] for row in case.rows]
    scorer, targets = bleu_of(case.language), [row.target for row in case.rows]
    # sacreBLEU's inner methods, as in trainer.evaluation.metrics: both systems' statistics of the same rows
    tables = [np.array(scorer._extract_corpus_statistics(texts, [targets]), float) for texts in (made, ours)]
    half = tables[0].shape[1]

    def bleu(sums: Sequence[float]) -> float:
        return float(scorer._compute_score_from_stats(list(sums)).score)

    totals = [bleu(table.sum(0).tolist()) for table in tables]
    limit = case.limits.bleu if case.exact else case.limits.int8_bleu
    difference = lambda s: bleu(s[:half]) - bleu(s[half:])  # noqa: E731
    paired = case.paired(totals, np.concatenate(tables, 1), difference, limit, case.fall(totals))
    return {"identical": identical(case), "bleu": paired}


def identical(case: Comparison) -> Check:
    """Texts that are the same; rows without one are not counted."""
    both = [(made, row.answer) for row, made in zip(case.rows, case.found, strict=True)]
    case.show([_unlike(a["prediction"], b["prediction"]) if "prediction" in b else 0.0 for a, b in both], "prediction")
    pairs = [(a, b) for a, b in both if "prediction" in b]
    same = sum(a["prediction"] == b["prediction"] for a, b in pairs) / len(pairs)
    least = case.limits.identical if case.exact else None
    return {"passed": least is None or same >= least, "share": same, "limit": least, "texts": len(pairs),
            "largest_score_difference": max(gap(a["score"], b["score"]) for a, b in pairs)}  # fmt: skip


def _unlike(a: str, b: str) -> float:
    """1 of texts without a word in common."""
    return 1 - difflib.SequenceMatcher(None, a.split(), b.split()).ratio() if a != b else 0.0


def perplexity(case: Comparison) -> dict[str, Check]:
    """The relative change decides: a perplexity of 20.2 is 1% more than one of 20."""
    pairs = zip(case.rows, case.found, strict=True)
    table = [[made["loss"], row.answer["loss"], row.answer["tokens"]] for row, made in pairs]
    table = np.nan_to_num(table, nan=HUGE, posinf=HUGE).tolist()
    gaps = [abs(made - ours) / tokens for made, ours, tokens in table]
    made, ours, tokens = (math.fsum(column) for column in zip(*table, strict=True))
    change = _exp((made - ours) / tokens) - 1
    limit = case.limits.perplexity if case.exact else case.limits.int8_perplexity
    score = lambda s: _exp(s[0] / s[2]) - _exp(s[1] / s[2])  # noqa: E731
    totals, cost = [_exp(made / tokens), _exp(ours / tokens)], abs(change) if case.exact else change
    check = case.paired(totals, table, score, limit, cost)
    order = np.argsort([-difference for difference in gaps], kind="stable")[:SHOWN].tolist()
    case.worst = [{"id": case.rows[i].id, "input": case.rows[i].input[:CUT], "difference": gaps[i]} for i in order]
    return {"perplexity": check | {"change": change}}


def continuations(case: Comparison) -> dict[str, Check]:
    """Losses of whole documents, and how beginnings are gone on with."""
    checks = perplexity(case)
    hardest = case.worst
    same = identical(case)
    if not checks["perplexity"]["passed"]:
        case.worst = hardest
    return {"identical": same, **checks}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def gap(a: Any, b: Any) -> float:
    """The largest difference; a number that JSON can hold even if there are NaN and Inf."""
    return float(np.nan_to_num(np.abs(np.asarray(a) - b), nan=HUGE, posinf=HUGE).max())


JUDGES: dict[str, Callable[[Comparison], dict[str, Check]]] = {
    "classification": classes,
    "translation": translations,
    "text_to_text": translations,
    "generation": continuations,
    "masked": perplexity,
}
