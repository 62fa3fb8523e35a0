"""The rounds of a campaign, and their table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Sequence
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
    first = multiprocessing.get_context("forkserver").Process(target=int)
    first.start()  # so that its server runs, and is known
    first.join()
    place.ours = {process.pid for process in place.strangers()}
    return place, missing


def play_rounds(options: argparse.Namespace, place: Place, missing: dict[str, str]) -> list[dict[str, Any]]:
    """Play the rounds that the folder does not have. Return the records of all."""
    skipped = set(missing) | (set(KINDS) - set(options.kind) if options.kind else set())
    file = options.folder / "rounds.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    played = {record["round"]: record for record in known if record["seed"] == options.seed}
    expected: dict[tuple[str, bool], dict[str, Any]] = {}
    numbers = numbers_of(options)
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


def numbers_of(options: argparse.Namespace) -> Sequence[int]:
    """Return the rounds to play."""
    first = options.earlier["rounds"] if options.earlier else 0
    return range(first, options.runs) if options.only is None else [options.only]


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
    result = summary(options.seed, played, missing)
    if options.earlier:
        result = added(options.earlier, result)
    table, bad = result["table"], result["failed"]
    print(f"\n{'rounds that held / rounds with':32s}" + "".join(f"{engine:>12s}" for engine in ENGINES))
    for kind, cells in table.items():
        print(f"{kind:32s}" + "".join(f"{'{}/{}'.format(*cells[engine]):>12s}" for engine in ENGINES))
    for kind, why in result["left_out"].items():
        print(f"left out: {kind}: {why}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    complete = options.only is not None or result["rounds"] == options.runs
    left_out = f", left out: {', '.join(result['left_out'])}" if result["left_out"] else ""
    print(
        f"{result['held']} of {result['rounds']} rounds held (seed {options.seed}, {result['starts']} starts, "
        f"{sum(cell[1] for cells in table.values() for cell in cells.values())} faults, "
        f"{result['without_a_fault_in_time']} rounds whose faults came too late{left_out})"
        + ("" if complete else f"; the campaign has {options.runs}: the same command continues")
    )
    return int(bool(bad) or not complete)


def summary(seed: int, played: list[dict[str, Any]], missing: dict[str, str]) -> dict[str, Any]:
    """Return the content of --json. Cells of the table are the rounds with this fault that held, and all of them."""
    happened, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for record in played:
        for kind in {kind for kind, hit in record["faults"] if hit}:
            happened[kind, record["engine"]] += 1
            failed[kind, record["engine"]] += bool(record["problems"])
    rows = [kind for kind in KINDS if any(happened[kind, engine] for engine in ENGINES)]
    bad = [record for record in played if record["problems"]]
    return {
        "seed": seed, "rounds": len(played), "held": len(played) - len(bad),
        "starts": sum(len(record["starts"]) for record in played),
        "without_a_fault_in_time": sum(not any(hit for _, hit in record["faults"]) for record in played),
        "table": {kind: {e: [(n := happened[kind, e]) - failed[kind, e], n] for e in ENGINES} for kind in rows},
        "left_out": missing, "failed": bad,
    }  # fmt: skip


def added(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return the content of --json for the rounds of both."""
    counts = ("rounds", "held", "starts", "without_a_fault_in_time")
    nothing = {engine: [0, 0] for engine in ENGINES}
    tables = [[part["table"].get(kind, nothing) for part in (earlier, later)] for kind in KINDS]
    both = {
        kind: {engine: [a + b for a, b in zip(first[engine], second[engine], strict=True)] for engine in ENGINES}
        for kind, (first, second) in zip(KINDS, tables, strict=True)
    }
    return {
        **later, **{name: earlier[name] + later[name] for name in counts},
        "table": {kind: cells for kind, cells in both.items() if any(all_ for _, all_ in cells.values())},
        "left_out": {**earlier["left_out"], **later["left_out"]}, "failed": [*earlier["failed"], *later["failed"]],
    }  # fmt: skip
