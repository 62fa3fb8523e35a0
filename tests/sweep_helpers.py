"""Sweeps of the stub trainer, and a check that no trial was lost or run twice."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sweep_stub
import yaml
from conftest import tiny_recipe

from launch.sweep.local import Places
from launch.sweep.run import run_here
from launch.sweep.space import Sweep, parse_sweep
from launch.sweep_folder import SweepFolder
from trainer.files import read_json
from trainer.recipe_loading import load_recipe
from trainer.rundir import RunDir

RATES = {"kind": "log_uniform", "low": 1e-5, "high": 1e-1}


def sweep_of(folder: Path, config: dict[str, Any], overrides: Sequence[str] = ()) -> Sweep:
    """A sweep of the tiny recipe, whose corpus no stub reads."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(folder)), encoding="utf-8")
    return Sweep(
        parse_sweep(json.loads(json.dumps(config)), "SWEEP.yaml"),
        lambda more: load_recipe(str(recipe), [*overrides, *more]),
        "SWEEP.yaml",
    )


def stub_command(recipe: Path, run: RunDir, only_train: bool) -> list[str]:
    defer = ["--defer"] if only_train else []
    return [sys.executable, sweep_stub.__file__, "train", str(recipe), "--run", str(run.path), *defer]


def run_stub(
    folder: Path, config: dict[str, Any], *, jobs: int = 1, top: int = 0, overrides: Sequence[str] = ()
) -> SweepFolder:
    """Run a sweep of the stub to its end."""
    sweep = SweepFolder(folder / "sweep")
    run_here(sweep, sweep_of(folder, config, overrides), stub_command, Places(jobs), top, "1-2")
    return sweep


def problems(sweep: SweepFolder, trials: int, states: Sequence[str] = ("complete",)) -> list[str]:
    """Return what is lost or was run twice, by the journal, the table and the run directories of the stub."""
    created = [json.loads(line) for line in sweep.journal.read_text(encoding="utf-8").splitlines()]
    params = [json.dumps(line["params"], sort_keys=True) for line in created if line["op_code"] == 4]
    found = [f"{number} times: {values}" for values, number in Counter(params).items() if number > 1]
    found += [] if len(params) == trials else [f"{len(params)} trials were drawn, not {trials}"]
    rows = (read_json(sweep.trials) or {}).get("trials", [])
    found += [f"trial {row['number']} is {row['state']}" for row in rows if row["state"] not in states]
    found += [] if len(rows) == trials else [f"trials.json has {len(rows)} trials, not {trials}"]
    folders = sorted(path.name for path in (sweep.path / "trials").iterdir())
    found += [] if folders == sorted(map(str, range(trials))) else [f"run directories: {folders}"]
    for name in folders:
        state = read_json(sweep.path / "trials" / name / "state.json") or {}
        steps = state.get("steps", [])
        found += [f"trial {name}: steps {steps}"] * (steps != list(range(1, len(steps) + 1)))
        found += [f"trial {name}: finished {state.get('done')} times"] * (state.get("done") not in (0, 1))
        if states == ("complete",) and len(steps) != sweep_stub.EVALUATIONS:
            found.append(f"trial {name}: {len(steps)} evaluations")
    return found


if __name__ == "__main__":  # a sweep in a new process, to be killed: FOLDER CONFIG JOBS
    run_stub(Path(sys.argv[1]), json.loads(sys.argv[2]), jobs=int(sys.argv[3]))
