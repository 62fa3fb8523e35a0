"""One run on one page: recipe, runtime, data, model, training, selection, evaluation, post-training."""

from __future__ import annotations

import math
import os
from typing import Any

from trainer.attempt import attempt
from trainer.data import remote
from trainer.data.python_rows import with_own_rows
from trainer.data_parallel import fusable
from trainer.engine import setup
from trainer.engine.resume_checks import write_recipe
from trainer.engine.runtime import Runtime, start
from trainer.engine.session import Session
from trainer.engine.signals import StopFlag
from trainer.errors import UsageError
from trainer.recipe import Recipe
from trainer.run_options import Options, Run, run_path
from trainer.rundir import RunDir
from trainer.stages import Times


def run_recipe(recipe: Recipe, options: Options) -> Run:
    """Train a recipe to its end, or resume it, and make everything that follows. All ranks call this together.

    Raises:
        RankzeroError: with the exit code of the design.
        Preempted: stopped by a signal, with everything saved.
    """

    remote.forget()
    run = RunDir(run_path(recipe, options))
    recipe = with_own_rows(recipe, run)
    with StopFlag().listening() as stop:
        splits = 1 if options.restart else run.splits()
        accumulation = accumulation_steps(recipe) * splits
        runtime = start(
            stop,
            deterministic="warn" if options.debug else "error" if recipe.loop.deterministic else None,
            accumulation=accumulation,
            clip_norm=recipe.optim.clip_norm,
            tf32=recipe.loop.tf32,
            rendezvous_seconds=recipe.launch.rendezvous_seconds,
        )
        with attempt(recipe, options, run, runtime, splits) as (recipe, status):
            data = runtime.on_main(lambda: prepare_inputs(recipe, run, runtime))
            session = Session(recipe, run, runtime, status, data, accumulation, splits, options.debug, options.profile)
            with session.tracked():
                session.train()
                session.select_checkpoint()
                if options.defer:
                    runtime.close()
                    session.finish_mirror()
                    return Run(run.path, session.progress.step, {})
                evaluated: list[str] = [split for split in recipe.evaluation.splits if getattr(recipe.data, split)]
                times = Times()
                with times.of("evaluation"):
                    scores = {split: session.evaluate(split) for split in evaluated}
                runtime.close()  # no collective can time out while rank zero works alone
                if runtime.main:
                    try:
                        finish_alone(session, scores, times)
                    finally:
                        session.finish_mirror()
                return Run(run.path, session.progress.step, scores)


def accumulation_steps(recipe: Recipe) -> int:
    """Return the micro-batches of each rank in a step. They follow from lanes and ranks and are never configured.

    With `loop.fuse_lanes: auto` it is the number without fusing, which the engine divides by. See `Stepper.fuse`.

    Raises:
        UsageError: more ranks than lanes, or `loop.fuse_lanes` does not divide the lanes of a rank.
    """
    ranks, lanes, fuse = int(os.environ.get("WORLD_SIZE", "1")), recipe.data.lanes, recipe.loop.fused_before_measuring
    if ranks > lanes:
        raise UsageError(
            f"{ranks} ranks are more than data.lanes={lanes}: each rank needs a lane; use at most {lanes} ranks, or a "
            "recipe with more lanes (which changes its steps)"
        )
    if fuse not in fusable(lanes, ranks):
        raise UsageError(
            f"loop.fuse_lanes={fuse} does not divide the {lanes / ranks:g} lanes of each of {ranks} ranks "
            f"(data.lanes={lanes}); choose a divisor, or 1"
        )
    return math.ceil(math.ceil(lanes / ranks) / fuse)


def prepare_inputs(recipe: Recipe, run: RunDir, runtime: Runtime) -> dict[str, Any]:
    """Check files and rows, make the tokenizer, and write recipe and manifest. Return the manifest's "data"."""

    setup.check_beginning(run, recipe, runtime.engine.precision)
    data = setup.survey_data(run, recipe)
    write_recipe(run, recipe)
    setup.make_tokenizer(run, recipe, data["train"])
    data = setup.count_data_tokens(run, recipe, data)
    setup.write_manifest(run, runtime, recipe, data)
    return data


def finish_alone(session: Session, scores: dict[str, dict[str, Any]], times: Times) -> None:
    """Make artifacts, reports and model card on rank zero."""
    from trainer.post_training import run_post_training

    def alive() -> None:
        if session.runtime.stop.received:
            raise session.runtime.stopped("while the artifacts were made")

    session.log_scores(scores)
    run_post_training(
        session.run,
        session.task,
        session.complete_model,
        session.corpus,
        list(scores),
        session.progress.step,
        alive,
        times,
    )
