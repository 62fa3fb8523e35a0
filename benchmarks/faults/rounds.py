"""A round: starts with faults, then the same command until it ends, then all that has to hold."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from conftest import tiny_recipe, write_corpus
from outcomes import STEPS, outcome
from processes import read_lines, status

from benchmarks.faults.kinds import DISK, Plan
from benchmarks.faults.sandbox import SHARED_MEMORY
from benchmarks.faults.starts import Ended, Place, RunningStart
from trainer.errors import RankzeroError
from trainer.files import read_json
from trainer.recipe_loading import load_recipe

TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n((?: .*\n)+)(.*)", re.MULTILINE)
TAIL = 3000  # characters of the output of a start that a problem is reported with


def play(plan: Plan, place: Place, expected: dict[str, Any]) -> dict[str, Any]:
    """Play a round. Return its record: starts, which faults have happened, seconds, and the problems, empty if it held.

    Args:
        expected: `result_of` the undisturbed run of the engine.
    """
    began, before = time.monotonic(), traces(place)
    folder = place.folder / "round"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = folder / "run"
    if place.disk and any(fault.kind in DISK for fault in plan.faults):
        if problem := place.disk.make():
            raise OSError(f"{place.disk.image}: {problem}")
        run = place.disk.place / "run"
    starts, struck, problems = [], [], list[str]()
    while not problems:
        ended = RunningStart(plan, len(starts), run, place, folder).wait()
        faults = [fault for fault in plan.faults if fault.start == len(starts)]
        struck += [(fault.kind, hit) for fault, hit in zip(faults, ended.struck, strict=True)]
        starts.append({"codes": ended.codes, "second": ended.second, "traceback": traceback_in(ended.text)})
        problems += problems_of_start(ended, run, faults=bool(faults))
        if ended.done:
            break
    if not problems:
        try:
            problems = [*problems_of_run(run, expected), *sorted(traces(place) - before)]
        except (OSError, ValueError, KeyError, AssertionError, RankzeroError) as error:
            problems = [f"the run cannot be read: {error!r}"]
    if problems:  # to look at
        if run.parent != folder and run.exists():
            shutil.copytree(run, folder / "run")
        shutil.rmtree(kept := place.folder / f"failed-{plan.number}", ignore_errors=True)
        folder.rename(kept)
    if place.disk:
        place.disk.remove()
    seconds = round(time.monotonic() - began, 1)
    return {"round": plan.number, "starts": starts, "faults": struck, "seconds": seconds, "problems": problems}


def traceback_in(text: str) -> str:
    """Return the ends of the tracebacks that a start has printed, of errors that rankzero did not expect."""
    ends = [f"{stack[-600:]}{error}" for stack, error in TRACEBACK.findall(text)]
    return "\n".join(ends)[:TAIL]


def problems_of_start(ended: Ended, run: Path, *, faults: bool) -> list[str]:
    """Return what is wrong after a start: no end without help, or a failure though nothing was disturbed."""
    problems = []
    if ended.late:
        problems.append(f"a process did not end without help: {ended.text[-TAIL:]}")
    elif not faults and not ended.done:
        problems.append(f"a start without faults ended with {ended.codes}: {ended.text[-TAIL:]}")
    return problems + ungated(run, finished=False)


def problems_of_run(run: Path, expected: dict[str, Any]) -> list[str]:
    """Return what is wrong with a run that has ended."""
    state = status(run)
    if (state["state"], state["exit_code"], state["step"]) != ("finished", 0, STEPS):
        return [f"status.json: {state}"]
    found = result_of(run)
    problems = [f"differs from the undisturbed run: {name}" for name in expected if found.get(name) != expected[name]]
    problems += [f"not in the undisturbed run: {name}" for name in found.keys() - expected.keys()]
    lines = read_lines(run / "ledger.jsonl")
    counts = Counter(row for line in lines for rows in line["rows"].values() for row in rows)
    if [line["step"] for line in lines] != [*range(1, STEPS + 1)] or max(counts.values()) - min(counts.values()) > 1:
        problems.append("the ledger has not every step and row once")
    return problems + ungated(run, finished=True) + leftovers(run)


def result_of(run: Path) -> dict[str, Any]:
    """Return weights, optimizer state, scores and predictions as hashes, and the rows of each step."""
    return {name: value for name, value in outcome(run).items() if not name.endswith("gate.json")}


def ungated(run: Path, *, finished: bool) -> list[str]:
    """Return the artifacts that are published without a passed gate. model/ gets its gate last."""
    artifacts = [path for path in (run / "export").glob("*") if path.is_dir() and not path.name.startswith(".")]
    if finished:
        export = load_recipe(run / "recipe.yaml").export
        artifacts += [
            place for place, made in ((run / "model", export.model), (run / "export/onnx", export.onnx)) if made
        ]
    gates = {place.name: read_json(place / "gate.json") or {} for place in artifacts}
    return [f"{name} has no passed gate" for name, gate in gates.items() if not gate.get("passed")]


def leftovers(run: Path) -> list[str]:
    """Return temporary files, and files that belong to an attempt that has ended."""
    names = [str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".")]
    names += [name for name in ("lock", "failed-rank.json") if (run / name).exists()]
    return [f"left in the run directory: {name}" for name in sorted(names)]


def traces(place: Place) -> set[str]:
    """Return files in shared memory and in the folder for temporary files."""
    paths = [*(SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ()), *(place.folder / "tmp").iterdir()]
    return {f"left: {path}" for path in paths}


def write_recipe(folder: Path) -> Path:
    """Write the tiny recipe and its corpus. Ranks stop waiting for a dead one before EXIT_SECONDS have passed."""
    write_corpus(folder / "corpus")
    launch = {"hang_seconds": 30, "rendezvous_seconds": 60}
    recipe = tiny_recipe(folder / "corpus", evaluation={"max_rows": 8}, launch=launch)
    recipe["loop"]["max_steps"] = STEPS
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
