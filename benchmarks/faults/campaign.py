"""The rounds of a campaign, and their table."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from benchmarks.faults import kinds, rounds, sandbox
from benchmarks.faults.kinds import ENGINES, KINDS, Plan
from benchmarks.faults.starts import Place, RunningStart

LONGEST_PATH = 50


def prepare(folder: Path, lacking: dict[str, str]) -> tuple[Place, dict[str, str]]:
    """Return where rounds happen, and why kinds of faults are left out."""
    if len(str(folder)) > LONGEST_PATH:  # sockets are below it
        raise SystemExit(f"--folder {folder}: {len(str(folder))} characters; {LONGEST_PATH} are allowed")
    place, missing = Place(folder, rounds.write_recipe(folder)), dict[str, str]()
    if "shim" in lacking:
        missing |= dict.fromkeys(kinds.SHIM, lacking["shim"])
    else:
        place.shim = sandbox.Shim(folder)
    disk = sandbox.Disk(folder / "disk.img", folder / "disk")
    if problem := lacking.get("namespaces") or disk.make():
        missing |= dict.fromkeys(kinds.DISK, problem)
    else:
        place.disk = disk
        disk.remove()
    hosts = sandbox.Hosts()
    if problem := lacking.get("namespaces") or hosts.make():
        missing |= dict.fromkeys(kinds.HOSTS, problem)
    else:
        place.hosts = hosts
    if problem := lacking.get("namespaces"):
        missing["second start"] = problem
    forkserver.ensure_running()
    place.ours = {process.pid for process in place.strangers()}
    return place, missing


def play_rounds(options: argparse.Namespace, place: Place, missing: dict[str, str]) -> list[dict[str, Any]]:
    """Play the rounds that the folder does not have. Return the records of all."""
    skipped = set(missing) | (set(KINDS) - set(options.kind) if options.kind else set())
    file = options.folder / "rounds.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    played = {record["round"]: record for record in known if record["seed"] == options.seed}
    expected: dict[tuple[str, bool], dict[str, Any]] = {}
    numbers = range(options.runs) if options.only is None else [options.only]
    began = time.monotonic()
    for number in numbers:
        if number in played and options.only is None:
            continue
        if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
            break
        plan = kinds.draw(number, options.seed, skipped)
        if options.only is not None:
            print(plan)
        key = (plan.engine, plan.export)
        if key not in expected:
            expected[key] = undisturbed(plan, place)
        record = {"seed": options.seed, "engine": plan.engine, **rounds.play(plan, place, expected[key])}
        played[number] = record
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        happened = ", ".join(f"{kind}{'' if hit else ' (too late)'}" for kind, hit in record["faults"])
        result = "FAILED: " + record["problems"][0] if record["problems"] else "held"
        print(f"{number:4d} {plan.engine:6s} {record['seconds']:5.1f} s  {happened}: {result}", flush=True)
    return [played[number] for number in numbers if number in played]


def undisturbed(plan: Plan, place: Place) -> dict[str, Any]:
    """Train without faults, and return what comes of it."""
    run = place.folder / f"undisturbed-{plan.engine}{'-export' * plan.export}"
    logs = run.with_name(f"{run.name}.logs")
    for left in (run, logs):
        shutil.rmtree(left, ignore_errors=True)
    calm = Plan(-1, plan.engine, 0, plan.export, False, ())
    ended = RunningStart(calm, 0, run, place, logs).wait()
    result = rounds.result_of(run) if ended.done else {}
    if problems := rounds.problems_of_run(run, result) if ended.done else [ended.text]:
        raise SystemExit(f"the undisturbed run under {plan.engine} failed: {problems}")
    return result


def report(options: argparse.Namespace, played: list[dict[str, Any]], missing: dict[str, str]) -> int:
    """Print the table of faults that have happened, and the summary. Return the exit code."""
    happened, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for record in played:
        for kind in {kind for kind, hit in record["faults"] if hit}:
            happened[kind, record["engine"]] += 1
            failed[kind, record["engine"]] += bool(record["problems"])
    rows = [kind for kind in KINDS if any(happened[kind, engine] for engine in ENGINES)]
    print(f"\n{'rounds that held / rounds with':32s}" + "".join(f"{engine:>12s}" for engine in ENGINES))
    for kind in rows:
        cells = [(happened[kind, engine], failed[kind, engine]) for engine in ENGINES]
        print(f"{kind:32s}" + "".join(f"{f'{all_ - bad}/{all_}':>12s}" for all_, bad in cells))
    for kind, why in missing.items():
        print(f"left out: {kind}: {why}")
    bad = [record for record in played if record["problems"]]
    calm = sum(not any(hit for _, hit in record["faults"]) for record in played)
    starts = sum(len(record["starts"]) for record in played)
    complete = options.only is not None or len(played) == options.runs
    if options.json:
        table = {kind: {e: [happened[kind, e] - failed[kind, e], happened[kind, e]] for e in ENGINES} for kind in rows}
        result = {
            "seed": options.seed, "rounds": len(played), "held": len(played) - len(bad), "starts": starts,
            "without_a_fault_in_time": calm, "table": table, "left_out": missing, "failed": bad,
        }  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    left_out = f", left out: {', '.join(missing)}" if missing else ""
    print(
        f"{len(played) - len(bad)} of {len(played)} rounds held (seed {options.seed}, {starts} starts, "
        f"{sum(happened.values())} faults, {calm} rounds whose faults came too late{left_out})"
        + ("" if complete else f"; the campaign has {options.runs}: the same command continues")
    )
    return int(bool(bad) or not complete)
