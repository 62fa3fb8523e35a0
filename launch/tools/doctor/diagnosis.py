"""Run the checks of `rankzero doctor` and print their results."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from launch.configs import LaunchPlan
from launch.findings import Check, Findings, size
from launch.tools.doctor import devices, disk, launching, machine, packages, ranks
from trainer.redaction import redacted

LIMIT = 90.0  # seconds for one check
COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
HEADINGS = ("size", "time", "algorithm GB/s", "bus GB/s", "sum")
CheckFunction = Callable[[Findings], None]


def diagnose(
    config: str | None = None,
    nproc: int | None = None,
    run: Path = Path("runs"),
    *,
    timeout: float = 120.0,
    quick: bool = False,
) -> tuple[list[Check], list[dict[str, Any]]]:
    """Run all checks, with the options of `rankzero doctor`.

    Returns:
        The results in the order of the checks, and a row for each size of the all-reduce.

    Raises:
        UsageError: there is no such config, or `nproc` does not fit it.
    """
    plan, config_check = launching.choose_plan(config, nproc)
    if not quick:
        print(f"rankzero: checking, {timeout:g} s at most for the ranks", file=sys.stderr, flush=True)
    result: dict[str, Any] = {}
    checks = _checks(config_check, plan, run) | {
        "ranks": partial(ranks.check_ranks, plan=plan, timeout=timeout, quick=quick, result=result),
        "all-reduce": partial(ranks.check_all_reduce, result=result),
        "barrier": partial(ranks.check_barrier, result=result),
    }
    if quick:
        del checks["disk speed"]
    limits = {"ranks": timeout + LIMIT}
    results = [
        check if isinstance(check, Check) else run_check(name, check, limits.get(name, LIMIT))
        for name, check in checks.items()
    ]
    return results, result.get("bandwidth", [])


def _checks(config: Check, plan: LaunchPlan | None, run: Path) -> dict[str, CheckFunction | Check]:
    """Return the checks that start no ranks, in the order of the output. The one of the config has been made."""
    return {
        "python": packages.check_python,
        "packages": packages.check_packages,
        "known bad versions": packages.check_known_bad,
        "package combination": packages.check_combination,
        "cpu": machine.check_cpu,
        "memory": machine.check_memory,
        "shared memory": machine.check_shared_memory,
        "open files": machine.check_open_files,
        "devices": devices.check_devices,
        "config": config,
        "shipped configs": launching.check_shipped,
        "accelerate's default": launching.check_default_file,
        "port": partial(launching.check_port, plan=plan),
        "environment": partial(launching.check_variables, plan=plan),
        "threads": partial(launching.check_threads, plan=plan),
        "network": partial(launching.check_network, plan=plan),
        "hub": launching.check_hub,
        "disk space": partial(disk.check_space, run=run),
        "saving": partial(disk.check_saving, run=run),
        "disk speed": partial(disk.check_speed, run=run),
        "slurm": launching.check_slurm,
    }


def run_check(name: str, function: CheckFunction, limit: float = LIMIT) -> Check:
    """Run one check in a thread. If it hangs or raises an error, it has failed, and the others still run."""
    outcome: Future[Check] = Future()

    def run() -> None:
        findings = Findings(name)
        try:
            function(findings)
        except Exception as error:
            text = redacted(f"the check itself failed: {type(error).__name__}: {error}")
            findings.fail(text, "this is a bug in rankzero: please report it with this line")
        outcome.set_result(findings.check("no problem found"))

    threading.Thread(target=run, name=f"doctor-{name}", daemon=True).start()  # at exit, a pool would wait for it
    try:
        return outcome.result(limit)
    except TimeoutError:
        fix = "dmesg; a driver or file system does not answer: check the mounts, or choose another --run"
        return Check(name, "failed", f"no answer within {limit:g} s", fix)


def show(checks: Sequence[Check], bandwidth: Sequence[dict[str, Any]]) -> None:
    """Print the results, in color on a terminal. Problems and what to do are last."""
    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        console.print(Text(f"{check.status:8s} {check.name:20s} {check.found}", COLORS[check.status]))
    if bandwidth:
        console.print("\nall-reduce between the ranks, fp32")
        for cells in [HEADINGS, *map(_cells, bandwidth)]:
            console.print("".join(f"{cell:>16s}" for cell in cells))
    problems = [check for check in checks if check.status in ("failed", "warning")]
    for check in sorted(problems, key=lambda check: check.status):
        line = f"\n{check.status}: {check.name}: {check.problem or check.found}\n  -> {check.fix}"
        console.print(Text(line, COLORS[check.status]))
    counts = Counter[str](check.status for check in checks)
    numbers = ", ".join(f"{counts[status]} {status}" for status in COLORS if counts[status])
    conclusion = "Not everything works here" if counts["failed"] else "Everything that was checked works here"
    console.print(f"\n{conclusion}: {numbers}.")


def _cells(row: dict[str, Any]) -> list[str]:
    speeds = [f"{row[key]:.3f}" for key in ("algorithm_gb_per_s", "bus_gb_per_s")]
    return [size(row["bytes"]), f"{row['seconds'] * 1e3:.3f} ms", *speeds, "correct" if row["correct"] else "WRONG"]
