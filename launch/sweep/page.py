"""sweep.html: parallel coordinates, importance, history and a table of all trials on one page without requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweep.figures import Row, coordinates, history, shown
from launch.sweep.space import Sweep
from launch.sweep_folder import SweepFolder
from trainer.evaluation.resampling import wilson
from trainer.files import read_json
from trainer.report.formats import finite
from trainer.report.page import write_page
from trainer.report.run_files import read_history

HERE = Path(__file__).parent


def write_sweep_page(folder: SweepFolder, sweep: Sweep, table: Mapping[str, Any]) -> Path:
    """Write sweep.html from the table of trials.json."""
    rows: list[Row] = table["trials"]
    complete = [row for row in rows if row["state"] == "complete"]
    ranked = sorted(complete, key=lambda row: row["value"], reverse=sweep.maximize)
    others = [row for row in rows if row["state"] != "complete"]
    counts = {
        state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed", "running")
    }
    figures = []
    if len(complete) > 1:
        figures.append((coordinates(sweep, [*ranked, *(row for row in others if row["state"] == "pruned")]), True))
        figures.append((history(sweep, complete), False))
    return write_page(
        folder.page,
        "sweep.html.jinja",
        HERE,
        name=table["name"],
        sweep=sweep,
        table=table,
        counts={state: number for state, number in counts.items() if number},
        best=ranked[0] if ranked else None,
        equal=[row["number"] for row in ranked[1:] if row["value"] == ranked[0]["value"]],
        interval=interval_of_best(folder, sweep, ranked),
        keys=list(sweep.space),
        rows=[*ranked, *others],
        figures=figures,
        importance=_importance(table["importance"]),
        top=table["top"],
        comparison=read_json(folder.top / "comparison.json"),
        candidates=_candidates(folder, table["top"]),
        shown=shown,
    )


def interval_of_best(folder: SweepFolder, sweep: Sweep, ranked: Sequence[Row]) -> dict[str, Any] | None:
    """Return the 95% interval of the best trial's score over the choice of validation rows, and what is inside.

    It is that of the trial's evaluation, or of a share of rows. Other scores of a trial have none: their predictions
    are not kept.
    """
    if not ranked:
        return None
    value, run = ranked[0]["value"], folder.run(ranked[0]["number"])
    scores = read_json(run.evaluation("validation") / "metrics.json") or {}
    ends = scores.get(f"{sweep.metric}_ci95") if scores.get(sweep.metric) == value else None
    lines = [line for line in read_history(run.metrics) if line.get("split") == "validation"]
    rows = next((line.get("rows") for line in reversed(lines) if line.get(sweep.metric) == value), None)
    if not ends and sweep.spec.share_of_rows and rows:
        ends = wilson(round(value * rows), rows)
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(finite, ends)):
        return None
    return {"ends": ends, "rows": rows, "inside": sum(ends[0] <= row["value"] <= ends[1] for row in ranked[1:])}


def _importance(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _candidates(folder: SweepFolder, top: Sequence[Row]) -> list[tuple[int, Row]]:
    """Return the comparisons of the seeds of each retrained trial."""
    numbers = dict.fromkeys(row["number"] for row in top)
    found = [(number, read_json(folder.top / str(number) / "comparison.json")) for number in numbers]
    return [(number, comparison) for number, comparison in found if comparison]
