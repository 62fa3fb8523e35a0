"""What a job of a sweep does besides the training: `python -m launch.sweep.task begin|watch|end SWEEP TRIAL`, `finish`.

Several tasks of an array use the journal of the sweep, each for a moment, under the lock of the sweep's folder.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import typer

from launch.sweep import slurm
from launch.sweep.trials import Trials, reopened
from launch.sweep_folder import SweepFolder, wait_until_free
from trainer.cli import run_app
from trainer.errors import RankzeroError

ENDED = 10  # exit code of `begin`: the trial needs no training any more
WATCH_SECONDS = 2.0

SweepArgument = Annotated[Path, typer.Argument(metavar="SWEEP")]
TrialArgument = Annotated[int, typer.Argument(metavar="TRIAL")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Trials]:
    """Open the journal of a sweep for a moment."""
    folder = SweepFolder(path)
    with folder.locked(wait=True):
        yield Trials(folder, reopened(folder), jobs=2)


@app.command("begin")
def begin(sweep: SweepArgument, trial: TrialArgument) -> None:
    """Draw the values of a trial, and those of the trials before it. Exit with 10 if there is nothing to train."""
    wait_until_free(SweepFolder(sweep).run(trial))
    with opened(sweep) as trials:
        while len(trials.study.trials) <= trial:
            if trials.study.create() is None:
                print(f"trial {trial}: no values are left")
                raise typer.Exit(ENDED)
        if trials.study.trials[trial].state.is_finished() or trials.record_end(trial):
            trials.publish()
            raise typer.Exit(ENDED)
        trials.ready(trial)
        trials.publish()


@app.command("watch")
def watch(sweep: SweepArgument, trial: TrialArgument, shell: Annotated[int, typer.Argument(metavar="PID")]) -> None:
    """Report the evaluations of a trial. Exit with 0 if it is to be pruned, with 1 when its job has ended."""
    metrics, seen = SweepFolder(sweep).run(trial).metrics, 0.0
    visible = psutil.pid_exists(shell)  # not from within some containers, with which SLURM ends this process
    while not visible or psutil.pid_exists(shell):
        changed = metrics.stat().st_mtime if metrics.exists() else 0.0
        if changed != seen:
            seen = changed
            with opened(sweep) as trials:
                stop = trials.study.noted(trial, "pruned") or trials.watch(trial)
            if stop:
                print(f"trial {trial}: pruned", flush=True)
                return
        time.sleep(WATCH_SECONDS)
    raise typer.Exit(1)


@app.command("end")
def end(sweep: SweepArgument, trial: TrialArgument, code: Annotated[int, typer.Argument(metavar="CODE")]) -> None:
    """Write the end of a trial to the journal. Exit with 1 if it has not ended, and its job can resume it."""
    with opened(sweep) as trials:
        ended = trials.record_end(trial)
        if not ended and code not in (0, 75):  # the script has tried again as often as it makes sense
            trials.died(trial, code, last=True)
            ended = trials.study.trials[trial].state.is_finished()
        trials.publish()
    raise typer.Exit(0 if ended else 1)


@app.command("finish")
def finish(sweep: SweepArgument) -> None:
    """After all tasks of an array: bring the journal up to date, and submit or compare the best trials retrained."""
    with opened(sweep) as trials:
        status = trials.folder.status().start()
        try:
            waits_for = slurm.submit_rest(trials)
        except RankzeroError as error:
            status.finish("failed", error.exit_code, str(error))
            raise
        status.finish("running" if waits_for else "finished", 0, waits_for=waits_for)


if __name__ == "__main__":
    sys.exit(run_app(app))
