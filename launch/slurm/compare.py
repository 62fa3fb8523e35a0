"""What the runs of an array have come to: mean, deviation and best of each score; of classifiers also their ensemble.

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
from trainer.rundir import RunDir, Status, read_json, write_atomically, write_json

SPLITS = ("validation", "test")


def compare(runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Writes the comparison and returns it.

    Raises:
        DataError: no run has finished, or one that has was not evaluated on a split of the others.
    """
    missing = [run for run in runs if (read_json(RunDir(run).status) or {}).get("state") != "finished"]
    runs = [run for run in runs if run not in missing]
    if not runs:
        raise DataError(f"no run has finished: {', '.join(map(str, missing))}; rankzero status RUN shows why")
    found: dict[str, Any] = {"runs": [str(run) for run in runs], "best": None, "splits": {}}
    found["missing"] = [str(run) for run in missing]
    for split in SPLITS:
        scores = [read_json(RunDir(run).evaluation(split) / "metrics.json") for run in runs]
        if not any(scores):
            continue
        if lacking := [str(run) for run, score in zip(runs, scores, strict=True) if not score]:
            raise DataError(f"{', '.join(lacking)}: not evaluated on {split}; rankzero evaluate RUN --split {split}")
        found["splits"][split] = {name: _summary(scores, name) for name in _names(scores)}
    found["best"] = _best(runs)
    if (kind := _task(runs[0])) == "classification":
        found["ensemble"] = {split: _ensemble(runs, split, out) for split in found["splits"]}
    found["task"] = kind
    write_json(out / "comparison.json", found)
    write_atomically(out / "comparison.md", to_markdown(found))
    return found


def _names(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Scores that are one number in every run; not the counts, and not the intervals beside them."""
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
    """The run that is best on `validation` by its recipe's own metric, never by `test`; None where there is none."""
    chosen = [(read_json(RunDir(run).manifest) or {}).get("stages", {}).get("model", {}) for run in runs]
    if not all(stage.get("metric") and stage.get("value") is not None for stage in chosen):
        return None
    from trainer.recipe_loading import Recipe
    from trainer.task.registry import task_class

    recipe = Recipe.load(RunDir(runs[0]).recipe)
    metric = chosen[0]["metric"]
    sign = 1 if task_class(recipe).metrics[metric] == "min" else -1
    run, stage = min(zip(runs, chosen, strict=True), key=lambda pair: sign * pair[1]["value"])
    return {"run": str(run), "metric": metric, "value": stage["value"], "split": "validation"}


def _task(run: Path) -> str:
    from trainer.recipe_loading import Recipe

    return str(Recipe.load(RunDir(run).recipe).task.kind)


def _ensemble(runs: Sequence[Path], split: str, out: Path) -> dict[str, Any]:
    from trainer.api import ensemble
    from trainer.evaluation.predictions import write_predictions

    records, summary = ensemble(list(runs), split=split)
    folder = out / "ensemble" / split
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.jsonl", records)
    write_json(folder / "metrics.json", summary)
    return dict(summary.get("ensemble", summary))


def to_markdown(found: dict[str, Any]) -> str:
    """The comparison for people."""
    names = [Path(run).name for run in found["runs"]]
    lines = [f"# {len(names)} runs compared", ""]
    if found["missing"]:
        names_of = ", ".join(Path(run).name for run in found["missing"])
        lines += [f"Not finished, and left out: {names_of}.", ""]
    if found["best"]:
        best = found["best"]
        lines += [f"Best on validation: **{Path(best['run']).name}** ({best['metric']} {best['value']:.4g}).", ""]
    for split, scores in found["splits"].items():
        ensemble = found.get("ensemble", {}).get(split, {})
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
