"""A trainer without a model: `sweep_stub.py train RECIPE --run DIR [--defer]`, for tests of sweeps.

It holds the lock of its run directory, evaluates eight times, saves after each evaluation, resumes, saves and ends with
75 on SIGTERM and SIGUSR1, and ends when the sweep dies. `steps` in state.json has every evaluation ever made.
With a rate of STUB_STOPPED or more it waits at its end until it is stopped, so that a loaded machine can prune it.
The loss is `|log10(optim.lr) + 3| + 1/evaluation`: 1e-3 is the best rate. A rate above 0.5 ends with code `seed`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from launch.supervise.signals import end_with_parent
from trainer.files import read_json, write_atomically, write_json
from trainer.lock import hold
from trainer.rundir import RunDir, Status

EVALUATIONS = 8
SECONDS = float(os.environ.get("STUB_SECONDS", "0.02"))  # of an evaluation
STOPPED = float(os.environ.get("STUB_STOPPED", "inf"))
PATIENCE = 240  # seconds it waits


def loss_at(lr: float, evaluation: int) -> float:
    return abs(math.log10(lr) + 3) + 1 / evaluation


def train(run: RunDir, recipe: Path, *, only_train: bool, stop: list[int]) -> int:
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    lr, metric = values["optim"]["lr"], values["loop"]["early_stopping"]["metric"]
    state = read_json(run.path / "state.json") or {"steps": [], "starts": 0, "done": 0}
    state["starts"] += 1
    write_json(run.path / "state.json", state)
    write_atomically(run.recipe, recipe.read_text(encoding="utf-8"))
    run.cut_after(run.metrics, len(state["steps"]))
    if lr > 0.5:
        return int(values["seed"])
    while len(state["steps"]) < EVALUATIONS:
        if stop:
            return 75
        time.sleep(SECONDS)
        step = len(state["steps"]) + 1
        run.append(run.metrics, {"step": step, "split": "validation", metric: loss_at(lr, step)})
        state["steps"].append(step)
        write_json(run.path / "state.json", state)
    end = time.monotonic() + PATIENCE
    while lr >= STOPPED and time.monotonic() < end:
        if stop:
            return 75
        time.sleep(SECONDS)
    if not only_train:
        for split in ("validation", "test"):
            run.evaluation(split).mkdir(parents=True, exist_ok=True)
            write_json(run.evaluation(split) / "metrics.json", {"rows": 12, metric: loss_at(lr, EVALUATIONS)})
    stage = {"metric": metric, "value": loss_at(lr, EVALUATIONS), "inputs": {}}
    write_json(run.manifest, {"stages": {"model": stage}})
    state["done"] += 1
    write_json(run.path / "state.json", state)
    return 0


def main() -> int:
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: stop.append(number))
    end_with_parent(signal.SIGTERM)
    run, only_train = RunDir(sys.argv[sys.argv.index("--run") + 1]), "--defer" in sys.argv
    run.path.mkdir(parents=True, exist_ok=True)
    with hold(run.path):
        status = Status(run, 1).start()
        code = train(run, Path(sys.argv[2]), only_train=only_train, stop=stop)
        names = {0: "running" if only_train else "finished", 75: "preempted"}
        status.finish(names.get(code, "failed"), code, None if code == 0 else f"the stub ends with {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
