"""The folder of a sweep: paths, and the table that `rankzero status` and the page show. No torch and no Optuna here.

runs/<name>/
  sweep.json  base.yaml  journal.jsonl  trials.json  sweep.html  status.json  lock
  recipes/<n>.yaml  trials/<n>/ (a run directory)  logs/<n>.log
  top/<n>/seed-<s>/ (a run directory)  top/<n>/comparison.json  top/comparison.json
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.supervise.final_status import current_status, seconds_silent
from trainer.errors import RankzeroError, UsageError
from trainer.files import is_number, make_folder, read_json
from trainer.lock import hold
from trainer.run_folders import SWEEP
from trainer.rundir import RunDir, Status

POLL_SECONDS = 0.5
BUSY_SECONDS = 600.0  # a task of an array waits so long for the other tasks, which hold the folder for moments
SAVING_SECONDS = 300.0  # for a trial whose sweep was killed: it saves and ends


@dataclass(frozen=True)
class Outcome:
    """What the run directory of a trial says.

    Attributes:
        trained: the training has ended, and its weights are selected.
        value: the metric of the selected weights on `validation`.
        error: of a run that has failed.
    """

    trained: bool
    value: float | None
    error: str | None


class SweepFolder:
    """Paths and small files of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition = path / SWEEP
        self.base = path / "base.yaml"
        self.journal = path / "journal.jsonl"
        self.trials = path / "trials.json"
        self.page = path / "sweep.html"
        self.top = path / "top"

    def recipe(self, number: int) -> Path:
        return self.path / "recipes" / f"{number}.yaml"

    def run(self, number: int) -> RunDir:
        return RunDir(self.path / "trials" / str(number))

    def log(self, name: object) -> Path:
        return self.path / "logs" / f"{name}.log"

    def top_recipe(self, number: int, seed: int) -> Path:
        return self.path / "recipes" / f"{number}-seed-{seed}.yaml"

    def top_run(self, number: int, seed: int) -> RunDir:
        return RunDir(self.top / str(number) / f"seed-{seed}")

    def status(self) -> Status:
        """Return a new status.json, which has no step."""
        status = Status(RunDir(self.path), 1)
        status.values["step"] = None
        return status

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Hold the folder for this process. The run directories in it have locks of their own.

        Raises:
            UsageError: another process holds it, with `wait` for all of BUSY_SECONDS.
        """
        make_folder(self.path)
        deadline = time.monotonic() + BUSY_SECONDS
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(hold(self.path))
                    break
                except UsageError:
                    if not wait or time.monotonic() > deadline:
                        raise
                    time.sleep(POLL_SECONDS)
            for left in self.path.glob(".*.tmp"):  # of a writer that was killed; those of the trials are not ours
                left.unlink(missing_ok=True)
            yield


def outcome(run: RunDir) -> Outcome:
    """Return whether a run is trained, and the value of its metric."""
    status, stage = read_json(run.status) or {}, run.stages().get("model") or {}
    trained = status.get("exit_code") == 0 and bool(stage)
    value = stage.get("value") if trained else None
    number = float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    return Outcome(trained, number, None if trained else status.get("error"))


def is_finished(run: RunDir) -> bool:
    """Return whether a run has been trained, evaluated and exported."""
    return bool((read_json(run.status) or {}).get("state") == "finished")


def evaluations(run: RunDir, metric: str) -> list[float]:
    """Return the metric at each evaluation on `validation` in metrics.jsonl, in order. NaN where it is missing.

    The one before the first step is left out, and so is an incomplete last line.
    """
    found: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for line in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(line)
                if isinstance(values, dict) and values.get("split") == "validation" and values.get("step", 0) > 0:
                    value = values.get(metric)
                    found[values["step"]] = float(value) if isinstance(value, int | float) else math.nan
    return [found[step] for step in sorted(found)]


def wait_until_free(run: RunDir, seconds: float | None = None) -> None:
    """Wait until no process uses a run directory. A run whose sweep was killed saves and ends.

    Raises:
        UsageError: one still uses it.
    """
    if not run.lock_file.exists():
        return
    deadline = time.monotonic() + (SAVING_SECONDS if seconds is None else seconds)
    while True:
        try:
            with run.locked():
                return
        except UsageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


# -- rankzero status ---------------------------------------------------------------------------------------------------


def read_trials(path: Path) -> dict[str, Any]:
    """Return trials.json: the table of the trials as of their last change. Empty before the first trial."""
    with contextlib.suppress(RankzeroError):
        table = dict(read_json(path / "trials.json") or {})
        return table if _is_table(table) else {}
    return {}


def _is_table(table: dict[str, Any]) -> bool:
    """Return whether trials.json has the form that a sweep writes: the folder may come from someone else."""
    trials, top = table.get("trials") or [], table.get("top") or []
    if not isinstance(trials, list) or not isinstance(top, list):
        return False
    return all(
        isinstance(trial, dict)
        and type(trial.get("number")) is int
        and isinstance(trial.get("state"), str)
        and (trial.get("value") is None or is_number(trial["value"]))
        and isinstance(trial.get("params"), dict)
        for trial in trials
    ) and all(isinstance(one, dict) and {"number", "seed", "state"} <= one.keys() for one in top)


def sweep_state(path: Path) -> dict[str, Any]:
    """Return the numbers of trials by state, the best trial, and where the running ones are."""
    table = read_trials(path)
    trials = table.get("trials") or []
    counts: dict[str, int] = {}
    running = []
    for trial in trials:
        state = trial["state"]
        if state == "running":  # when the table was written: its process may have ended since
            status = current_status(SweepFolder(path).run(trial["number"]).path)
            state = "interrupted" if status.get("state") in ("failed", "preempted") else state
            own = {key: status.get(key) for key in ("state", "step", "error")}
            running.append({"trial": trial["number"], **own, "silent": seconds_silent(status)})
        counts[state] = counts.get(state, 0) + 1
    best = next((trial for trial in trials if trial["number"] == table.get("best")), None)
    return {
        "planned": table.get("planned"),
        "metric": table.get("metric"),
        "counts": counts,
        "best": best and {key: best[key] for key in ("number", "value", "params")},
        "running": running,
        "top": table.get("top") or [],
    }


def sweep_lines(state: dict[str, Any]) -> list[str]:
    """Return `sweep_state` as text."""
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items())
    lines = [f"sweep: {counts or 'no trial yet'} of {state['planned'] or '?'} trials"]
    if (best := state["best"]) and best["value"] is not None:
        values = " ".join(f"{key}={json.dumps(value)}" for key, value in best["params"].items())
        lines.append(f"best: trial {best['number']}, validation {state['metric']} {best['value']:.4g}: {values}")
    for run in state["running"]:
        step = "" if run["step"] is None else f", step {run['step']}"
        silent = f", no update for {run['silent']} s" if run["silent"] else ""
        error = f": {run['error']}" if run["error"] else ""
        lines.append(f"trial {run['trial']}: {run['state'] or 'not begun'}{step}{silent}{error}")
    for run in state["top"]:
        lines.append(f"trial {run['number']} with seed {run['seed']}: {run['state']}")
    return lines
