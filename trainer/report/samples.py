"""Where a translator is weak: its rows by sentence-level chrF (Popović 2015) and by length ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation.predictions import Record
from trainer.report.errors import Measure, length_buckets, words
from trainer.report.inputs import write_lines
from trainer.rundir import write_json

SENTENCE_EDGES = (5, 8, 11, 14, 18, 25, 40)  # words of a sentence; a bucket ends with its edge


def judged_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every row, the worst translation first: id, text, target, prediction, score, loss, words, chrf, length_ratio.

    chrf is sacreBLEU's chrF2 of the one sentence, 0 to 100; length_ratio is words of the translation over words of the
    reference, null where the reference is empty. Ties keep the order of the corpus.
    """
    from sacrebleu.metrics import CHRF

    metric, rows = CHRF(), []
    for record in records:
        reference = len(record["target"].split())
        rows.append(
            {
                "id": record["id"],
                "text": record["input"],
                "target": record["target"],
                "prediction": record["prediction"],
                "score": record.get("score"),
                "loss": record["loss"],
                "words": words(record),
                "chrf": float(metric.sentence_score(record["prediction"], [record["target"]]).score),
                "length_ratio": len(record["prediction"].split()) / reference if reference else None,
            }
        )
    return sorted(rows, key=lambda row: row["chrf"])


def best_rows(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The best translations, of equally good ones the longest: a short sentence is easily right."""
    return sorted(rows, key=lambda row: (-row["chrf"], -row["words"]))[:count]


def length_outliers(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows whose translation is most too short or too long, seen from a ratio of 1 (half is as far as double)."""
    known = [row for row in rows if row["length_ratio"] is not None]
    return sorted(known, key=lambda row: -abs(np.log(max(row["length_ratio"], 1e-3))))[:count]


def chrf_by_length(records: Sequence[Record], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows and their mean sentence chrF for each bucket of source length in words."""
    score = mean_chrf(rows)[1]
    return [
        {"from": low, "to": high, "rows": len(found), "chrf": score(found)}
        for low, high, found in length_buckets(records, SENTENCE_EDGES)
    ]


def mean_chrf(rows: Sequence[dict[str, Any]]) -> Measure:
    """The mean sentence chrF of some of these rows, as a measure for `find_shared_texts`."""
    chrf = {row["id"]: row["chrf"] for row in rows}
    return "mean_chrf", lambda records: float(np.mean([chrf[record["id"]] for record in records]))


def summarise(records: Sequence[Record], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many translations equal the reference or are empty, chrF by length, and the spread of length ratios."""
    ratios = [row["length_ratio"] for row in rows if row["length_ratio"] is not None]
    spread = np.quantile(ratios, [0.05, 0.5, 0.95]).tolist() if ratios else [None] * 3
    return {
        "rows": len(rows),
        "identical": sum(row["prediction"] == row["target"] for row in rows),
        "empty": sum(not row["prediction"].strip() for row in rows),
        "mean_chrf": float(np.mean([row["chrf"] for row in rows])),
        "length_ratio": dict(zip(("p5", "median", "p95"), spread, strict=True)),
        "by_length": chrf_by_length(records, rows),
        "best": [row["id"] for row in best_rows(rows, 10)],
        "worst": [row["id"] for row in rows[:10]],
        "length_outliers": [row["id"] for row in length_outliers(rows, 10)],
    }


def write_samples(records: Sequence[Record], folder: Path) -> list[Path]:
    """errors.jsonl (rows that differ from their reference, worst first) and errors.json (the summary) in `folder`."""
    rows = judged_rows(records)
    write_json(folder / "errors.json", summarise(records, rows))
    different = [row for row in rows if row["prediction"] != row["target"]]
    return [write_lines(folder / "errors.jsonl", different), folder / "errors.json"]
