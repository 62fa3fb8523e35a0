"""The comparison of runs as plain values: scores, differences, tests, recipes, and rows that changed sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.compare.runs import Compared, notes, open_runs
from trainer.compare.significance import holm, mcnemar
from trainer.evaluation.paired import paired_bootstrap
from trainer.evaluation.resampling import RESAMPLES
from trainer.recipe.changes import different_keys
from trainer.report.formats import finite

LISTED = 100  # rows of a side


def compare(paths: Sequence[Path], split: str, *, common: bool = False) -> tuple[dict[str, Any], list[Compared]]:
    """Compare runs with the first one on the same rows.

    Returns:
        The comparison as JSON, and the runs.

    Raises:
        As `open_runs`.
    """
    runs = open_runs(paths, split, common=common)
    return comparison_of(runs), runs


def comparison_of(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the comparison of opened runs as JSON."""
    first, rows = runs[0], len(runs[0].records)
    sides = [sides_of(first, run) for run in runs[1:]]
    found: dict[str, Any] = {
        "task": first.report.kind,
        "split": first.report.split,
        "rows": rows,
        "resamples": RESAMPLES,
        "reference": first.name,
        "runs": [_about(run) for run in runs],
        "metrics": _metrics(runs, rows),
        "mcnemar": _mcnemar(runs, sides),
        "recipe": recipe_changes(runs),
        "rows_changed": [{"run": run.name, **side} for run, side in zip(runs[1:], sides, strict=True)],
    }
    found["notes"] = [*notes(runs), *_cautions(found)]
    return found


def without_rows(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison without texts and predictions of rows. The counts of rows stay."""
    counts = ("run", "binary", "better", "worse", "equal")
    sides = [{key: side[key] for key in counts} for side in found["rows_changed"]]
    return {**found, "rows_changed": sides}


def _about(run: Compared) -> dict[str, Any]:
    about = {"step": run.report.stage.get("step"), "seed": run.report.recipe.get("seed")}
    return {"name": run.name, "path": str(run.report.run.path), **about}


def _metrics(runs: Sequence[Compared], rows: int) -> list[dict[str, Any]]:
    """Return a line for each score that all runs have, the headline metrics first."""
    once = np.ones(rows)
    values = [run.scores(once) for run in runs]
    differences = paired_bootstrap([run.scores for run in runs], rows)
    specs = {spec.key: spec for spec in runs[0].report.metrics}
    keys = [key for key in {**specs, **values[0]} if all(finite(found.get(key)) for found in values)]
    lines = [_line(key, runs, values, differences, specs) for key in keys]
    stored = [run.report.scores for run in runs]
    if any(scores.get("rows") != rows for scores in stored):  # of other rows than those compared
        return lines
    more = [key for key in specs if key not in keys and all(finite(scores.get(key)) for scores in stored)]
    return lines + [_line(key, runs, stored, [{}] * (len(runs) - 1), specs) for key in more]


def _line(
    key: str,
    runs: Sequence[Compared],
    values: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    specs: Mapping[str, Any],
) -> dict[str, Any]:
    spec = specs.get(key)
    plain = [{"difference": found[key] - values[0][key], "difference_ci95": None, "p": None} for found in values[1:]]
    made = [dict(found.get(key, one)) for found, one in zip(differences, plain, strict=True)]
    names = [run.name for run in runs[1:]]
    known = {name: one["p"] for name, one in zip(names, made, strict=True) if one["p"] is not None}
    corrected = holm(known)
    for name, one in zip(names, made, strict=True):
        one.update(run=name, p_holm=corrected.get(name))
    return {
        "key": key,
        "name": spec.label if spec else key,
        "better": spec.direction if spec else None,
        "values": {run.name: found[key] for run, found in zip(runs, values, strict=True)},
        "differences": made,
    }


def sides_of(first: Compared, other: Compared) -> dict[str, Any]:
    """Return the rows that the other run predicts better or worse than the first, those that differ most first.

    "binary": whether each row is right or wrong, so that all listed rows have changed sides.
    """
    pairs = list(zip(first.row_scores, other.row_scores, strict=True))
    order = sorted(range(len(pairs)), key=lambda n: -abs(pairs[n][1] - pairs[n][0]))
    better = [n for n in order if pairs[n][1] > pairs[n][0]]
    worse = [n for n in order if pairs[n][1] < pairs[n][0]]
    return {
        "binary": all(score in (0, 1) for pair in pairs for score in pair),
        "better": len(better),
        "worse": len(worse),
        "equal": len(pairs) - len(better) - len(worse),
        "rows_better": [_row(first, other, n) for n in better[:LISTED]],
        "rows_worse": [_row(first, other, n) for n in worse[:LISTED]],
    }


def _row(first: Compared, other: Compared, number: int) -> dict[str, Any]:
    one = first.records[number]
    texts = {run.name: run.report.shown(run.records[number]["prediction"], one["input"]) for run in (first, other)}
    scores = {run.name: run.row_scores[number] for run in (first, other)}
    target = first.report.shown(one["target"], one["input"])
    return {"id": one["id"], "input": one["input"], "target": target, "predictions": texts, "scores": scores}


def _mcnemar(runs: Sequence[Compared], sides: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return McNemar's test of each run against the first, where each row is right or wrong; else nothing."""
    if not all(side["binary"] for side in sides):
        return []
    p_values = {run.name: mcnemar(side["worse"], side["better"]) for run, side in zip(runs[1:], sides, strict=True)}
    corrected = holm(p_values)
    return [
        {
            "run": run.name,
            "only_reference_right": side["worse"],
            "only_run_right": side["better"],
            "p": p_values[run.name],
            "p_holm": corrected[run.name],
        }
        for run, side in zip(runs[1:], sides, strict=True)
    ]


def recipe_changes(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return the keys of the recipes that are not equal in all runs, with the value of each run."""
    return [
        {"key": key, "values": dict(zip((run.name for run in runs), values, strict=True))}
        for key, values in different_keys([run.report.recipe for run in runs]).items()
    ]


def _cautions(found: Mapping[str, Any]) -> list[str]:
    changed = [line["key"] for line in found["recipe"] if line["key"] != "name"]
    lines = []
    if len(found["runs"]) > 2:
        lines.append(
            "p-values are corrected for the number of runs (Holm), for each metric on its own. Choose the metric "
            "before you look at the others."
        )
    if changed != ["seed"]:
        lines.append(
            "Intervals and p-values are about the choice of the rows only. Another seed of the same recipe moves the "
            "scores, too: train several seeds before you prefer a recipe."
        )
    return lines
