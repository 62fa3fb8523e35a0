"""What rank zero makes of a trained run, alone: artifacts, reports, model card. No other rank waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trainer.errors import GateError
from trainer.export.benchmark import bench_stage
from trainer.export.stage import export_run, throttled
from trainer.recipe_loading import Recipe
from trainer.report_stages import attempt, card_stage, render_reports, report_stage
from trainer.rundir import RunDir, read_json

if TYPE_CHECKING:
    from torch import nn

    from trainer.engine.corpus import Corpus
    from trainer.task.base import Task

log = logging.getLogger("rankzero")


def run_post_training(
    run: RunDir,
    task: Task,
    model: nn.Module,
    corpus: Corpus,
    splits: Sequence[str],
    step: int,
    alive: Callable[[], None],
) -> None:
    """Everything that follows the evaluation; what has been made of the same inputs is left as it is.

    A report or model card that cannot be written is a warning in the log and does not fail the run.

    Args:
        run: evaluated, its lock held.
        model: the trained one, for the pictures of the report.
        splits: those that have been evaluated.
        step: the last one of the training.
        alive: called again and again while artifacts are made; what it raises ends that, and the next start goes on.

    Raises:
        GateError: artifacts were kept out; reports and card, which tell of it, have been written.
    """
    refused, tell = None, throttled(log.info)

    def say(text: str) -> None:
        alive()
        tell(text)

    try:
        export_run(run, Recipe, say=say)
    except GateError as error:
        refused = error
    before = read_json(run.export / "benchmark.json")
    seconds = task.recipe.export.bench if task.recipe.export.wanted() else 0.0
    if bench_stage(run, Recipe, seconds=seconds) not in (None, before):  # what the pages show has changed
        attempt("the report", run, lambda: render_reports(run))
    for split in splits:
        attempt(f"the report of {split}", run, partial(report_stage, run, task, model, corpus, split, step), split)
    attempt("the model card", run, lambda: card_stage(run))
    if refused is not None:
        raise refused
