"""A sweep as arrays of SLURM jobs: one for the trials, one for the best ones with several seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from launch.slurm.follow import active, recorded_jobs
from launch.slurm.job import Job, make_job
from launch.slurm.render import render
from launch.slurm.submission import Script, run_checks, submit_scripts, with_chain
from launch.sweep import top as best
from launch.sweep.space import Sweep
from launch.sweep.trials import Trials, define
from launch.sweep_folder import SweepFolder, is_finished
from trainer.errors import RankzeroError, UsageError
from trainer.files import read_json, write_json

MOST_TASKS = 1000  # SLURM's default MaxArraySize is 1001
TRIALS, TOP = "the jobs of its trials", "the jobs of its best trials"


def submit_sweep(
    folder: SweepFolder, sweep: Sweep, asked: dict[str, Any], command: Sequence[str], *, dry_run: bool
) -> str | None:
    """Submit what is left of a sweep. Return what it waits for, or None if nothing is left.

    Args:
        asked: "config", "jobs" at a time, "top" and "seeds".
        command: RECIPE KEY=VALUE … as typed.

    Raises:
        UsageError: the folder has jobs already, or SLURM refuses.
    """
    if sweep.planned > MOST_TASKS:
        raise UsageError(f"{sweep.planned} trials: an array has {MOST_TASKS} tasks at most; set fewer trials")
    if dry_run:
        job = _job(folder, command, asked)
        scripts = _trial_scripts(job, sweep, range(sweep.planned), asked["jobs"])
        print("\n".join(script.text for script in scripts), end="")
        run_checks(job, scripts, None)
        return None
    if busy := active(folder.path):
        raise UsageError(
            f"{folder.path} has job {busy[0].job} ({busy[0].state}) already: rankzero cancel, or another --out"
        )
    with folder.locked():
        define(folder, sweep)
        write_json(folder.definition, {**(read_json(folder.definition) or {}), "asked": asked})
        waits_for = submit_rest(Trials(folder, sweep, jobs=2), command)
        folder.status().finish("running" if waits_for else "finished", 0, waits_for=waits_for)
        return waits_for


def submit_rest(trials: Trials, command: Sequence[str] = ()) -> str | None:
    """Bring the journal up to date, and submit what is left. Return what the sweep waits for, or None.

    Trials are submitted only from a terminal (`command`): a job that submitted its own successors could do so forever.

    Raises:
        RankzeroError: no trial is complete, or trials or retrained runs have not ended.
    """
    folder, study = trials.folder, trials.study
    asked = (read_json(folder.definition) or {})["asked"]
    trials.catch_up(busy=active)
    new = range(len(study.trials), trials.sweep.planned if study.more() else 0)
    left = [*study.open_trials(), *new]
    if left and not command:
        numbers = ranges(left)
        raise RankzeroError(f"trials {numbers} have not ended: `rankzero sweep --slurm` submits them again")
    if left:
        job = _job(folder, command, asked)
        _submit(job, _trial_scripts(job, trials.sweep, left, asked["jobs"]))
        return TRIALS
    if not study.best():
        raise RankzeroError(f"no trial of {folder.path} is complete: rankzero status {folder.path}")
    if not asked["top"]:
        return None
    known = "top" in (read_json(folder.definition) or {})
    runs = best.choose(trials, asked["top"], asked["seeds"])
    unfinished = [pair for pair in runs if not is_finished(folder.top_run(*pair))]
    if unfinished and (command or not known):
        job = _job(folder, command or [str(folder.base)], asked)
        _submit(job, _top_scripts(job, folder, unfinished, asked["jobs"]))
        trials.publish()
        return TOP
    best.compare_top(folder, runs)
    trials.publish()
    if unfinished:
        names = ", ".join(str(folder.top_run(*pair).path) for pair in unfinished)
        raise RankzeroError(f"{names}: not finished; `rankzero sweep --slurm` submits them again")
    return None


def _job(folder: SweepFolder, command: Sequence[str], asked: dict[str, Any]) -> Job:
    recipe, *overrides = command
    job = make_job(recipe, overrides, {}, asked["config"], folder.path)
    return with_chain(job, "0")


def _submit(job: Job, scripts: Sequence[Script]) -> None:
    """Submit scripts, each after the one before, and the first one after the job that this process belongs to."""
    own = os.environ.get("SLURM_JOB_ID", "")
    run_checks(job, scripts, None)
    submit_scripts(job, scripts, int(own) if own.isdecimal() and own in recorded_jobs(job.run) else None)


def _trial_scripts(job: Job, sweep: Sweep, numbers: Sequence[int], jobs: int) -> list[Script]:
    more = {"stage": "trials", "prune": sweep.config.prune.kind != "none"}
    return _scripts(job, "trials", f"{ranges(numbers)}%{jobs}", more)


def _top_scripts(job: Job, folder: SweepFolder, runs: Sequence[tuple[int, int]], jobs: int) -> list[Script]:
    more = {
        "stage": "top",
        "runs": [folder.top_run(*pair).path.absolute() for pair in runs],
        "recipes": [folder.top_recipe(*pair).absolute() for pair in runs],
    }
    return _scripts(job, "top", f"{ranges(range(len(runs)))}%{jobs}", more)


def _scripts(job: Job, stage: str, tasks: str, more: dict[str, Any]) -> list[Script]:
    """Return the array, and the job that follows it."""
    home = job.run / "slurm"
    title = f"rankzero sweep {job.command[0]} --slurm: {stage}"
    values = job.values() | more | {"title": title, "kind": stage, "numbers": tasks}
    values["log"] = (f"{job.run}/slurm/", f"{stage}-%A_%a.out")
    last = job.finalize_values() | {
        "title": f"{title}, finish",
        "kind": "finish",
        "job_name": f"{job.name[:50]}-finish",
        "log": (f"{job.run}/slurm/", "finish-%j.out"),
        "module": "launch.sweep.task",
        "words": ["finish", job.run],
    }
    return [
        Script(home / f"{stage}.sbatch", stage, render("sweep.sbatch", values)),
        Script(home / "finish.sbatch", "compare", render("finalize.sbatch", last)),
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers as an array of SLURM: 0-3,5,7-9."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
