"""Retrain the best trials of a sweep with several seeds, compare the seeds, and make their ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from launch.slurm.compare import compare
from launch.sweep.trials import Trials
from launch.sweep_folder import SweepFolder, is_finished
from trainer.errors import DataError, UsageError
from trainer.files import make_folder, read_json, write_atomically, write_json


def choose(trials: Trials, count: int, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Write the recipes of the best trials with each seed. Return (trial, seed) of all.

    A choice that was made before is kept: the results of more trials do not change it.

    Raises:
        UsageError: no trial is complete, or another number or other seeds were chosen before.
    """
    folder, study = trials.folder, trials.study
    definition = read_json(folder.definition) or {}
    kept = definition.get("top")
    if kept is not None and (kept["count"], kept["seeds"]) != (count, list(seeds)):
        before = f"--top {kept['count']} --seeds {','.join(map(str, kept['seeds']))}"
        raise UsageError(f"{folder.top} has the runs of {before}: give the same, or move that folder away")
    if kept is None:
        best = study.best()[:count]
        if not best:
            raise UsageError(f"--top {count}: no trial of {folder.path} is complete, so none can be retrained")
        kept = {"count": count, "seeds": list(seeds), "trials": best}
        write_json(folder.definition, {**definition, "top": kept})
    runs = [(number, seed) for number in kept["trials"] for seed in kept["seeds"]]
    for number, seed in runs:
        path = folder.top_recipe(number, seed)
        if not path.exists():
            make_folder(path.parent)
            values = study.values(study.trials[number])
            name = f"{trials.sweep.base.name}-{number}-seed-{seed}"
            splits = ["validation", *(["test"] if "test" in trials.sweep.base.evaluation.splits else [])]
            more = {"name": name, "seed": seed, "evaluation.splits": splits}
            write_atomically(path, trials.sweep.recipe(values, **more).to_yaml())
    return runs


def compare_top(folder: SweepFolder, runs: Sequence[tuple[int, int]]) -> None:
    """Compare the seeds of each trial, and all runs together. Classifiers get their ensembles.

    Raises:
        DataError: no run has finished.
    """
    finished = [pair for pair in runs if is_finished(folder.top_run(*pair))]
    if not finished:
        raise DataError(f"{folder.top}: no run has finished; rankzero status RUN shows why")
    for number in dict.fromkeys(number for number, _ in finished):
        seeds = [seed for trial, seed in runs if trial == number]
        compare([folder.top_run(number, seed).path for seed in seeds], folder.top / str(number))
    compare([folder.top_run(*pair).path for pair in runs], folder.top)
