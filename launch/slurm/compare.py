"""Compare the runs of an array: mean, deviation and best of each score, and the ensemble of classifiers.

    python -m launch.slurm.compare RUN RUN … --out DIR

Writes DIR/comparison.json and DIR/comparison.md, and for classifiers DIR/ensemble/<split>/.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.cli import run_app
from trainer.errors import DataError
from trainer.evaluation.predictions import write_predictions
from trainer.files import read_json, write_atomically, write_json
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir, Status
from trainer.task.base import Task
from trainer.task.registry import task_class

SPLITS = ("validation", "test")


def compare(runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the comparison and return it.

    Raises:
        DataError: no run has finished, or a finished one was not evaluated on a split of the others.
    """
    missing = [run for run in runs if (read_json(RunDir(run).status) or {}).get("state") != "finished"]
    runs = [run for run in runs if run not in missing]
    if not runs:
        raise DataError(f"no run has finished: {', '.join(map(str, missing))}; rankzero status RUN shows why")
    comparison: dict[str, Any] = {"runs": [str(run) for run in runs], "best": None, "splits": {}}
    comparison["missing"] = [str(run) for run in missing]
    for split in SPLITS:
        scores = [read_json(RunDir(run).evaluation(split) / "metrics.json") for run in runs]
        if not any(scores):
            continue
        if lacking := [str(run) for run, score in zip(runs, scores, strict=True) if not score]:
            raise DataError(f"{', '.join(lacking)}: not evaluated on {split}; rankzero evaluate RUN --split {split}")
        comparison["splits"][split] = {name: _summary(scores, name) for name in _names(scores)}
    comparison["best"] = _best(runs)
    task = _task(runs[0])
    if task.averages:
        comparison["ensemble"] = {split: _ensemble(runs, split, out) for split in comparison["splits"]}
    comparison["task"] = task.kind
    write_json(out / "comparison.json", comparison)
    write_atomically(out / "comparison.md", to_markdown(comparison))
    return comparison


def _names(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of scores that are one number in every run: no intervals, and not the number of rows."""
    return [
        name
        for name in scores[0]
        if name != "rows"
        and all(isinstance(s.get(name), int | float) and not isinstance(s[name], bool) for s in scores)
    ]


def _summary(scores: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    values = [float(score[name]) for score in scores]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": values}


def _best(runs: Sequence[Path]) -> dict[str, Any] | None:
    """Return the run that is best on `validation` by its recipe's metric, never by `test`, or None."""
    chosen = [(read_json(RunDir(run).manifest) or {}).get("stages", {}).get("model", {}) for run in runs]
    if not all(stage.get("metric") and stage.get("value") is not None for stage in chosen):
        return None
    recipe = Recipe.load(RunDir(runs[0]).recipe)
    metric = chosen[0]["metric"]
    sign = 1 if task_class(recipe).metrics[metric] == "min" else -1
    run, stage = min(zip(runs, chosen, strict=True), key=lambda pair: sign * pair[1]["value"])
    return {"run": str(run), "metric": metric, "value": stage["value"], "split": "validation"}


def _task(run: Path) -> type[Task]:

    return task_class(Recipe.load(RunDir(run).recipe))


def _ensemble(runs: Sequence[Path], split: str, out: Path) -> dict[str, Any]:
    from trainer.api import ensemble

    records, summary = ensemble(list(runs), split=split)
    folder = out / "ensemble" / split
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.jsonl", records)
    write_json(folder / "metrics.json", summary)
    return dict(summary.get("ensemble", summary))


def to_markdown(comparison: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    names = [Path(run).name for run in comparison["runs"]]
    lines = [f"# {len(names)} runs compared", ""]
    if comparison["missing"]:
        names_of = ", ".join(Path(run).name for run in comparison["missing"])
        lines += [f"Not finished, and left out: {names_of}.", ""]
    if comparison["best"]:
        best = comparison["best"]
        lines += [f"Best on validation: **{Path(best['run']).name}** ({best['metric']} {best['value']:.4g}).", ""]
    for split, scores in comparison["splits"].items():
        ensemble = comparison.get("ensemble", {}).get(split, {})
        heads = ["score", "mean", "deviation", *names, *(["ensemble"] if ensemble else [])]
        lines += [f"## {split}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for name, s in scores.items():
            cells = [s["mean"], s["deviation"], *s["values"], *([ensemble.get(name)] if ensemble else [])]
            lines.append(f"| {name} | {' | '.join('-' if cell is None else f'{cell:.4g}' for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")],
) -> None:
    """Compare runs that differ in their seed."""
    with RunDir(out).locked():
        status = Status(RunDir(out), 1).start()
        try:
            compare(runs, out)
        except Exception as error:
            status.finish("failed", getattr(error, "exit_code", 1), str(error))
            raise
        status.finish("finished", 0)
    print((out / "comparison.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_app(app))
