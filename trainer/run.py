"""One run on one page: recipe, runtime, data, model, training, selection, evaluation, post-training."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

from trainer.data.python_rows import with_own_rows, write_rows
from trainer.data_parallel import fusable
from trainer.engine import setup
from trainer.engine.resume_checks import agree_with_earlier, write_recipe
from trainer.engine.runtime import Runtime, start
from trainer.engine.session import Session
from trainer.engine.signals import StopFlag
from trainer.errors import UsageError
from trainer.failures import report_failure, report_hang
from trainer.files import read_json, write_json
from trainer.lock import follow
from trainer.recipe import Recipe
from trainer.recipe.sections import DataConfig
from trainer.run_options import Options, Run, run_path
from trainer.rundir import RunDir, Status
from trainer.stages import Times
from trainer.task.registry import roles_of

log = logging.getLogger("rankzero")

DEFERRED = "a job for evaluation, export and report"  # status.json: what a run trained with `defer` waits for


def run_recipe(recipe: Recipe, options: Options) -> Run:
    """Train a recipe to its end, or resume it, and make everything that follows. All ranks call this together.

    Raises:
        RankzeroError: with the exit code of the design.
        Preempted: stopped by a signal, with everything saved.
    """

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
            session.train()
            session.select_checkpoint()
            if options.defer:
                runtime.close()
                return Run(run.path, session.progress.step, {})
            evaluated: list[str] = [split for split in recipe.evaluation.splits if getattr(recipe.data, split)]
            times = Times()
            with times.of("evaluation"):
                scores = {split: session.evaluate(split) for split in evaluated}
            runtime.close()  # no collective can time out while rank zero works alone
            if runtime.main:
                finish_alone(session, scores, times)
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


@contextlib.contextmanager
def attempt(
    recipe: Recipe, options: Options, run: RunDir, runtime: Runtime, splits: int
) -> Iterator[tuple[Recipe, Status | None]]:
    """Hold the run directory for one attempt, and report how it ends.

    Give the recipe with the pinned revision of its data set, and rank zero its `status.json`.

    A start that is refused leaves the run directory as it was. The lock is released last, after the status is written.
    """
    with contextlib.ExitStack() as lock:
        status = None
        try:
            number, token, data = runtime.on_main(lambda: _take(recipe, options, run, splits, lock))
            if runtime.main:
                status = Status(run, number).start()
            else:
                lock.enter_context(follow(run.path, token))
            hang = functools.partial(report_hang, run, runtime, status)
            runtime.watch(recipe.launch.hang_seconds, run.path, hang)
            yield recipe.model_copy(update={"data": data}), status
        except BaseException as error:
            reported = report_failure(run, runtime, status, error)
            if reported is error:
                raise
            raise reported from None
        finally:
            runtime.leave()
        if status is not None and options.defer:
            status.finish("running", 0, waits_for=DEFERRED)
        elif status is not None:
            status.finish("finished", 0)


def _take(
    recipe: Recipe, options: Options, run: RunDir, splits: int, lock: contextlib.ExitStack
) -> tuple[int, str, DataConfig]:
    """Lock the run directory on rank zero. Return the number of this attempt, the token of the lock, and `data`."""

    if options.restart:
        _make_room(run, keep=options.fresh)
    held = lock.enter_context(run.locked())
    run.create()
    recipe = setup.pin_dataset(run, recipe)
    agree_with_earlier(run, recipe, options.allow_change)
    if options.rows is not None:
        write_rows(run, options.rows, recipe, roles_of(recipe))
    manifest = read_json(run.manifest)  # of the latest start; "starts" has the earlier ones
    if manifest is not None:
        fused = {} if (found := run.fused_lanes()) is None else {"fuse_lanes": found}
        write_json(run.manifest, {**manifest, "micro_batch_splits": splits, **fused})
    run.note.unlink(missing_ok=True)
    return 1 if manifest is None else len(manifest["starts"]) + 2, held.token, recipe.data


def _make_room(run: RunDir, *, keep: bool) -> None:
    """Move an earlier run aside (--fresh). A debug run is replaced."""
    if not run.path.exists():
        return
    with run.locked():
        pass  # refuses while another process writes there
    if keep:
        log.info("--fresh: the earlier run is kept as %s", run.set_aside())
    else:
        shutil.rmtree(run.path)


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
