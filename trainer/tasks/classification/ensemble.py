"""Several classifiers as one: their probabilities averaged row by row, and how much they agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import Record, in_corpus_order
from trainer.report.run_files import read_records
from trainer.report.task_report import open_report
from trainer.rundir import RunDir
from trainer.tasks.classification.analysis import accuracy, is_wrong
from trainer.tasks.classification.report import ClassificationReport

SMALLEST = 1e-12  # a probability of 0 for the truth counts as this one: the loss stays a number


def ensemble(
    runs: Sequence[RunDir],
    split: str,
    score: Callable[[Iterable[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Average the probabilities of several runs of classifiers on the same rows, and predict the most probable class.

    `score`: from the ensemble's records to the numbers of metrics.json.

    Returns:
        The ensemble's records in corpus order, as in predictions.jsonl; and
        {"split", "rows", "members": [{"run", "accuracy"}], "ensemble": {"accuracy", …score}, "agreement": [{"runs":
        [a, b], "equal": share of equal predictions, "kappa": Cohen's, null if both always say the same one label}],
        "all_equal": share of rows on which all members agree, "some_right": share on which at least one is right}.

    Raises:
        UsageError: fewer than two runs.
        DataError: runs differ in rows, targets or labels (names the first id), or a record is not a classifier's.
    """
    if len(runs) < 2:
        raise UsageError(f"an ensemble needs two runs or more, not {len(runs)}")
    members = [_member(run, split) for run in runs]
    for run, other in zip(runs[1:], members[1:], strict=True):
        _check_same_rows(runs[0], members[0], run, other)
    together = [_average(rows) for rows in zip(*members, strict=True)]
    count = len(together)
    summary = {
        "split": split,
        "rows": count,
        "members": [{"run": str(run.path), "accuracy": accuracy(m)} for run, m in zip(runs, members, strict=True)],
        "ensemble": {"accuracy": accuracy(together), **(score(together) if score else {})},
        "agreement": [
            {"runs": [str(runs[a].path), str(runs[b].path)], **_agreement(members[a], members[b])}
            for a, b in itertools.combinations(range(len(runs)), 2)
        ],
        "all_equal": sum(len({row["prediction"] for row in rows}) == 1 for rows in zip(*members, strict=True)) / count,
        "some_right": sum(not all(map(is_wrong, rows)) for rows in zip(*members, strict=True)) / count,
    }
    return together, summary


def _agreement(first: Sequence[Record], second: Sequence[Record]) -> dict[str, float | None]:
    """Share of rows with equal predictions, and Cohen's (1960) kappa, which subtracts agreement by chance."""
    from sklearn.metrics import cohen_kappa_score

    a, b = [row["prediction"] for row in first], [row["prediction"] for row in second]
    same_label = len({*a, *b}) == 1  # chance alone agrees always: kappa is 0/0
    kappa = None if same_label else float(cohen_kappa_score(a, b))
    return {"equal": float(np.mean([x == y for x, y in zip(a, b, strict=True)])), "kappa": kappa}


def _member(run: RunDir, split: str) -> list[Record]:
    """Records in corpus order, with `shares`: the probabilities in the order of the sorted labels."""
    try:
        report = open_report(run, split, most=None)
    except DataError as error:
        raise DataError(f"{run.path}: {error}; only classifiers can be averaged") from None
    if not isinstance(report, ClassificationReport):
        mode = f" task.mode={report.recipe['task']['mode']!r}" if "mode" in report.recipe["task"] else ""
        one = " with one label per row" if mode else ""
        raise DataError(f"{run.path}: task.kind={report.kind!r}{mode}; only classifiers{one} can be averaged")
    stored, names = (record["probabilities"] for record in read_records(run, split)), sorted(report.names)
    shares = (np.array([found[name] for name in names]) for found in stored)
    return in_corpus_order({**row, "shares": one} for row, one in zip(report.records, shares, strict=True))


def _check_same_rows(first: RunDir, rows: Sequence[Record], other: RunDir, others: Sequence[Record]) -> None:
    """Raise DataError with the first row in which two runs differ."""
    for a, b in itertools.zip_longest(rows, others):
        if a is None or b is None or a["id"] != b["id"]:
            ids = (f"{run.path}: {row['id'] if row else 'no more row'}" for run, row in ((first, a), (other, b)))
            raise DataError(f"the runs were evaluated on different rows; the first that differs is {' and '.join(ids)}")
        if a["target"] != b["target"]:  # inputs may differ: each run has its own cleaning
            raise DataError(
                f"row {a['id']!r} has target {a['target']!r} in {first.path}, {b['target']!r} in {other.path}"
            )
        if set(a["labels"]) != set(b["labels"]):
            names = [", ".join(sorted(row["labels"])) for row in (a, b)]
            raise DataError(f"row {a['id']!r}: {first.path} has the labels {names[0]}; {other.path} has {names[1]}")


def _average(rows: Sequence[Record]) -> Record:
    first, means = rows[0], np.mean([row["shares"] for row in rows], axis=0).tolist()
    by_name = dict(zip(sorted(first["labels"]), means, strict=True))
    shares = {name: by_name[name] for name in first["labels"]}
    return {
        **{key: first[key] for key in ("id", "input", "target")},
        "prediction": max(shares, key=lambda label: shares[label]),
        "probabilities": shares,
        "loss": -math.log(max(shares[first["target"]], SMALLEST)),
        "tokens": 1,
    }
