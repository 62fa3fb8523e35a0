"""An attempt at a run: hold its run directory from start to end, and report how the attempt ends."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Iterator

from trainer.data.hub_datasets import pin_dataset
from trainer.data.python_rows import write_rows
from trainer.engine.mirror import fetch
from trainer.engine.resume_checks import agree_with_earlier, check_launcher_restart, restarted_by_launcher
from trainer.engine.runtime import Runtime
from trainer.errors import hide_credentials
from trainer.failures import report_failure, report_hang
from trainer.files import read_json, write_json
from trainer.lock import follow
from trainer.recipe import Recipe
from trainer.recipe.sections import DataConfig
from trainer.run_options import Options
from trainer.rundir import RunDir, Status
from trainer.task.registry import roles_of

log = logging.getLogger("rankzero")

DEFERRED = "a job for evaluation, export and report"  # status.json: what a run trained with `defer` waits for


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
            hide_credentials(error)
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

    again = restarted_by_launcher(run)
    if options.restart and not again:
        _make_room(run, keep=options.fresh)
    held = lock.enter_context(run.locked())
    if again:
        check_launcher_restart(run)
    run.create()
    if options.resume_from is not None:
        fetch(options.resume_from, run)
    recipe = pin_dataset(run, recipe)
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
