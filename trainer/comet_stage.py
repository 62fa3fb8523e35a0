"""Add the score of COMET to an evaluated split of a finished run, and render its report again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.evaluation.comet import add_comet
from trainer.recipe_loading import Recipe
from trainer.report_stages import refresh_reports
from trainer.rundir import RunDir


def comet(
    run: str | Path, *, split: str = "test", python: Path | None = None, model: Path | None = None
) -> dict[str, Any]:
    """Score predictions.jsonl of a split with COMET in a separate environment. Return metrics.json.

    Args:
        python: interpreter of that environment; default: the variable RANKZERO_COMET_PYTHON.
        model: checkpoint of a COMET model; default: the variable RANKZERO_COMET_MODEL.

    Raises:
        RankzeroError: no such run or predictions, or COMET failed. Without its environment the score is skipped.
    """
    folder = RunDir(run)
    folder.check()
    with folder.locked():
        scores = add_comet(folder, split, python, model, Recipe.load(folder.recipe).evaluation.bootstrap)
        refresh_reports(folder)
    return scores
