"""A sweep on this machine from start to end: trials, the best ones with several seeds, comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.configs import choose, gpus
from launch.slurm.arrays import seeds_of
from launch.slurm.follow import active
from launch.sweep import slurm
from launch.sweep import top as best
from launch.sweep.local import Command, Jobs, LocalSweep, Places, failure, train_command
from launch.sweep.space import Sweep, read_sweep
from launch.sweep.trials import Trials, define
from launch.sweep_folder import SweepFolder
from trainer.errors import RankzeroError, UsageError
from trainer.recipe_loading import load_recipe


def run_sweep(
    recipe: str,
    overrides: Sequence[str],
    space: Path,
    out: Path | None,
    jobs: int,
    config: str | None,
    nproc: int | None,
    best: dict[str, Any],
    *,
    slurm: bool,
    dry_run: bool,
) -> None:
    """Run `rankzero sweep`. `best`: its options `top` and `seeds`.

    Raises:
        RankzeroError: SWEEP.yaml is wrong, or as `run_here` and `run_on_slurm`.
    """
    sweep = Sweep(read_sweep(space), lambda more: load_recipe(recipe, [*overrides, *more]), str(space))
    folder = SweepFolder(out or Path("runs") / (sweep.config.name or f"{sweep.base.name}-sweep"))
    if slurm:
        run_on_slurm(folder, sweep, {**best, "config": config, "jobs": jobs}, [recipe, *overrides], dry_run)
        return
    if dry_run:
        raise UsageError("--dry-run is for --slurm: without it, SWEEP.yaml is checked before anything starts")
    places, options = places_of(config, nproc, jobs)
    run_here(folder, sweep, train_command(options), places, **best)


def run_here(folder: SweepFolder, sweep: Sweep, command: Command, places: Places, top: int, seeds: str) -> None:
    """Run a sweep to its end, or resume it.

    Raises:
        Preempted: stopped by a signal, with everything saved.
        RankzeroError: the folder has another sweep, or trials that must be finished could not be.
    """
    numbers = seeds_of(seeds, "--seeds")
    if busy := active(folder.path):
        raise UsageError(f"{folder.path} has job {busy[0].job} ({busy[0].state}): wait, or rankzero cancel")
    with folder.locked():
        define(folder, sweep)
        status = folder.status().start()
        try:
            _run(LocalSweep(Trials(folder, sweep, places.jobs), Jobs(folder, command, places)), top, numbers)
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            status.finish("preempted" if code == 75 else "failed", code, str(error) or type(error).__name__)
            raise
        status.finish("finished", 0)


def _run(sweep: LocalSweep, top: int, seeds: list[int]) -> None:
    trials, folder = sweep.trials, sweep.trials.folder
    sweep.run_trials()
    if (count := len(trials.study.trials)) < trials.sweep.planned:
        print(f"{count} of {trials.sweep.planned} trials: no other values go together")
    if top:
        runs = best.choose(trials, top, seeds)
        failed = sweep.run_top(runs)
        best.compare_top(folder, runs)
        trials.publish()
        if failed:
            raise failure(failed, folder)
    found = trials.study.best()
    if not found:
        raise RankzeroError(f"no trial of {folder.path} is complete; {folder.page} says why")
    print(f"best: trial {found[0]}, recipe {folder.recipe(found[0])}")
    print(f"done: {folder.page}")


def run_on_slurm(
    folder: SweepFolder, sweep: Sweep, asked: dict[str, Any], command: Sequence[str], dry_run: bool
) -> None:
    """Submit what is left of a sweep as SLURM jobs. See `launch.sweep.slurm.submit_sweep`.

    Raises:
        UsageError: SLURM refuses, or the folder has jobs already.
    """
    asked = {**asked, "seeds": seeds_of(asked["seeds"], "--seeds")}
    waits_for = slurm.submit_sweep(folder, sweep, asked, command, dry_run=dry_run)
    if waits_for is not None:
        print(f"rankzero status {folder.path} shows the trials")
    elif not dry_run:
        print(f"done: {folder.page}")


def places_of(config: str | None, nproc: int | None, jobs: int) -> tuple[Places, list[str]]:
    """Return where the jobs of this machine run, and the options of `rankzero train` for each.

    Raises:
        UsageError: there are not enough GPUs.
    """
    plan, here = choose(config, nproc), gpus()
    shared = jobs > 1 and here > 0 and not plan.cpu
    if shared and nproc is None and not plan.spec.one_process:
        nproc = max(1, here // jobs)
        plan = choose(config, nproc)
    options = [f"--config={config}"] * (config is not None) + [f"--nproc={nproc}"] * (nproc is not None)
    if not shared:
        return Places(jobs, (), plan.ranks_here), options
    ranks = plan.ranks_here
    if ranks * jobs > here:
        raise UsageError(f"--jobs {jobs} with {ranks} GPUs each: there are {here}; at most --jobs {here // ranks}")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(here)))).split(",")
    return Places(jobs, [",".join(names[slot * ranks : (slot + 1) * ranks]) for slot in range(jobs)], ranks), options
