"""Make artifacts, reports and model card of a trained run. Rank zero runs this alone; no other rank waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trainer.baselines import baseline_stage
from trainer.errors import GateError
from trainer.export.adapter import check_adapter
from trainer.export.benchmark import bench_seconds, bench_stage
from trainer.export.stage import export_run, log_progress
from trainer.files import read_json
from trainer.report_stages import attempt, card_stage, render_reports, report_stage
from trainer.rundir import RunDir
from trainer.stages import Times

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
    times: Times,
) -> None:
    """Run all stages that follow the evaluation. A stage whose inputs are unchanged is skipped.

    A report or model card that cannot be written is a warning in the log and does not fail the run.

    Args:
        run: evaluated, its lock held.
        model: the trained model, for the attention figures of the report.
        splits: the evaluated splits.
        step: the last step of the training.
        alive: called repeatedly while artifacts are made. What it raises ends the stage, and the next start resumes.
        times: of the evaluation. The log has one line with those of all stages.

    Raises:
        GateError: artifacts were refused. Reports and card, which show it, have been written.
    """
    refused: GateError | None = None
    log_message = log_progress()

    def progress(text: str) -> None:
        alive()
        log_message(text)

    for stage in (
        partial(check_adapter, run, task, model, corpus),
        partial(export_run, run, progress=progress),
    ):
        try:
            with times.of("artifacts and their checks"):
                stage()
        except GateError as error:
            refused = refused or error
    with times.of("baseline"):
        baseline = partial(baseline_stage, run, task, corpus, splits, alive)
        made = attempt("the baseline", run, baseline)
    before = read_json(run.export / "benchmark.json")
    seconds = bench_seconds(run, task.recipe.export.bench) if task.recipe.export.wanted() else 0.0
    with times.of("benchmark"):
        found = bench_stage(run, seconds=seconds)
    with times.of("reports"):
        if made or found not in (None, before):  # the pages show them
            attempt("the report", run, lambda: render_reports(run))
        for split in splits:
            attempt(f"the report of {split}", run, partial(report_stage, run, task, model, corpus, split, step), split)
        attempt("the model card", run, lambda: card_stage(run))
    log.info("after the training: %s", times)
    if refused is not None:
        raise refused
