"""The trials of a sweep between Optuna's journal and their run directories. All functions need the folder's lock."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.supervise.exit_codes import PREEMPTED
from launch.supervise.final_status import write_final_status
from launch.sweep.page import write_sweep_page
from launch.sweep.space import Sweep, SweepConfig, parse_sweep
from launch.sweep.study import STATES, Study
from launch.sweep_folder import SweepFolder, evaluations, is_finished, outcome, wait_until_free
from trainer.errors import RankzeroError, UsageError
from trainer.files import make_folder, read_json, without_nan, write_atomically, write_json
from trainer.recipe import Recipe, parse_yaml
from trainer.recipe.changes import different_keys
from trainer.recipe_loading import load_recipe
from trainer.redaction import redacted
from trainer.rundir import RunDir

MOST_FAILURES = 3  # starts of a trial in a row that die without a newer checkpoint
MOST_LINES = 10  # keys that the refusal of another sweep lists
FREE = ("trials", "name")  # keys of SWEEP.yaml that may change
OWN_FAULT = (2, 5)  # exit codes that follow from the values of a trial: the next trial may do better


class Trials:
    """The trials of a sweep."""

    def __init__(self, folder: SweepFolder, sweep: Sweep, jobs: int = 1) -> None:
        self.folder, self.sweep = folder, sweep
        self.study = Study(sweep, folder.journal, jobs)

    def ready(self, number: int) -> Path:
        """Write the recipe of a trial if it is not there. Return its path."""
        path = self.folder.recipe(number)
        if not path.exists():
            make_folder(path.parent)
            values = self.study.values(self.study.trials[number])
            write_atomically(path, self.sweep.recipe(values, name=f"{self.sweep.base.name}-{number}").to_yaml())
        return path

    def watch(self, number: int) -> bool:
        """Report the new evaluations of a running trial. Return whether it must stop, which is then decided."""
        found = evaluations(self.folder.run(number), self.sweep.metric)
        if not self.study.report(number, found) or not self.study.should_prune(number):
            return False
        self.study.note(number, "pruned", {"evaluation": len(found), "value": found[-1]})
        return True

    def record_end(self, number: int) -> bool:
        """End a trial as its run directory says. Return whether it has ended.

        A trial that was trained to its end is complete, even if it was to stop early.
        """
        run = self.folder.run(number)
        found = outcome(run)
        if found.trained:
            self.study.report(number, evaluations(run, self.sweep.metric))
            if found.value is None:
                self.study.failed(number, f"no value of {self.sweep.metric} on validation")
            else:
                self.study.complete(number, found.value)
        elif stop := self.study.noted(number, "pruned"):
            _mark(run, stop)
            self.study.pruned(number)
        else:
            return False
        return True

    def catch_up(self, busy: Callable[[Path], Any] = lambda path: False) -> None:
        """End the trials that their run directories show as ended since the last start, and publish the table.

        Args:
            busy: whether a trial with this run directory has a job, which ends it.
        """
        for number in self.study.open_trials():
            run = self.folder.run(number)
            if not busy(run.path):
                wait_until_free(run)
                self.record_end(number)
        self.publish()

    def died(self, number: int, code: int, *, last: bool = False) -> None:
        """Count the end of a trial's process that did not end the trial. The trial fails, or it starts again.

        Args:
            last: it does not start again.

        Raises:
            RankzeroError: for a reason that every trial has, such as its data or a full disk.
        """
        run = self.folder.run(number)
        error = outcome(run).error or f"its process ended with {code}; see {self.folder.log(number)}"
        if code in OWN_FAULT:
            self.study.failed(number, error)
        elif code in (3, 4):
            raise _stopped_by(code, f"trial {number}: {error}. The same command resumes once that is fixed")
        else:
            step = run.newest_checkpoint()
            before = self.study.noted(number, "deaths") or {}
            count = 1 + (before.get("count", 0) if before.get("step") == step else 0)
            self.study.note(number, "deaths", {"step": step, "count": count})
            if count >= MOST_FAILURES or last:
                self.study.failed(number, error)
        ended = [trial for trial in self.study.trials if trial.state.is_finished()]
        if len(ended) >= MOST_FAILURES and all("error" in trial.user_attrs for trial in ended):
            raise RankzeroError(f"all {len(ended)} trials have failed; the last one: {error}")

    def ended(self) -> str:
        """Return how many trials have ended, by state; empty for none."""
        counts = Counter(STATES[trial.state] for trial in self.study.trials if trial.state.is_finished())
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def publish(self) -> dict[str, Any]:
        """Write trials.json and the page. Return the table. An evaluation without a number is null."""
        table = without_nan({"name": self.folder.path.name, **self.study.table(), "top": self.top_table()})
        write_json(self.folder.trials, table)
        write_sweep_page(self.folder, self.sweep, table)
        return table

    def top_table(self) -> list[dict[str, Any]]:
        """Return the retrained runs of the best trials."""
        wanted = (read_json(self.folder.definition) or {}).get("top") or {}
        runs = [(number, seed) for number in wanted.get("trials", []) for seed in wanted.get("seeds", [])]
        rows = []
        for number, seed in runs:
            run = self.folder.top_run(number, seed)
            state = "finished" if is_finished(run) else (read_json(run.status) or {}).get("state") or "waiting"
            rows.append({"number": number, "seed": seed, "state": state, "value": outcome(run).value})
        return rows


def _mark(run: RunDir, stop: dict[str, Any]) -> None:
    """Write to the status of a trial that its sweep has stopped it."""
    text = f"pruned by its sweep after evaluation {stop['evaluation']}"
    if text not in str((read_json(run.status) or {}).get("error")):
        with contextlib.suppress(RankzeroError, OSError):
            write_final_status(run.path, PREEMPTED, text)


def _stopped_by(code: int, message: str) -> RankzeroError:
    error = RankzeroError(message)
    error.exit_code = code
    return error


# -- the definition of a sweep -----------------------------------------------------------------------------------------


def define(folder: SweepFolder, sweep: Sweep) -> None:
    """Write what a sweep is to its folder, or check that the folder has the same one. More trials are allowed.

    Raises:
        UsageError: the folder has another sweep.
    """
    asked, base = sweep.config.model_dump(mode="json"), sweep.base.to_yaml()
    kept = read_json(folder.definition)
    if kept is not None:
        old = parse_sweep(kept["config"], str(folder.definition)).model_dump(mode="json")
        _refuse_other(folder, sweep, old, asked)
        if (asked["trials"] or 0) < (old["trials"] or 0):
            asked["trials"] = old["trials"]
    write_atomically(folder.base, base)
    write_json(folder.definition, {**(kept or {}), "config": asked, "metric": sweep.metric})


def _refuse_other(folder: SweepFolder, sweep: Sweep, old: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UsageError if the folder has another sweep: the keys that differ, with both values."""
    configs = [{key: value for key, value in one.items() if key not in FREE} for one in (old, asked)]
    before = parse_yaml(folder.base.read_text(encoding="utf-8"), str(folder.base))
    recipes = [before, parse_yaml(sweep.base.to_yaml(), "recipe")]
    changed = {"SWEEP": different_keys(configs), "recipe": different_keys(recipes)}
    lines = [
        f"\n  {key} of {source}: {json.dumps(redacted(there))} in the folder, {json.dumps(redacted(here))} now"
        for source, keys in changed.items()
        for key, (there, here) in keys.items()
    ]
    if lines:
        more = f"\n  and {len(lines) - MOST_LINES} more keys" if len(lines) > MOST_LINES else ""
        raise UsageError(
            f"{folder.path} has a sweep with other settings:{''.join(lines[:MOST_LINES])}{more}\nRestore the values of "
            "the folder to resume that sweep, or choose another --out for a new one"
        )


def reopened(folder: SweepFolder) -> Sweep:
    """Return the sweep of a folder.

    Raises:
        UsageError: it is not the folder of a sweep.
    """
    kept = read_json(folder.definition)
    if kept is None:
        raise UsageError(f"{folder.path} is not the folder of a sweep: it has no sweep.json")
    config: SweepConfig = parse_sweep(kept["config"], str(folder.definition))

    def resolve(overrides: Any) -> Recipe:
        return load_recipe(str(folder.base), overrides)

    return Sweep(config, resolve, str(folder.definition))


def describe(values: dict[str, Any]) -> str:
    """Return the values of a trial on one line."""
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={json.dumps(value)}"
                    for key, value in values.items())  # fmt: skip
