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

from launch.findings import Check, Findings, size
from launch.tools.doctor import devices, disk, launching, machine, ranks
from trainer.errors import RankzeroError
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
    checks: dict[str, CheckFunction] = {
        "packages": machine.check_packages,
        "cpu": partial(machine.check_cpu, plan=plan),
        "memory": machine.check_memory,
        "shared memory": machine.check_shared_memory,
        "devices": devices.check_devices,
        "environment": partial(launching.check_environment, plan=plan),
        "network": partial(launching.check_network, plan=plan),
        "disk": partial(disk.check_disk, run=run, quick=quick),
        "slurm": launching.check_slurm,
        "ranks": partial(ranks.check_ranks, plan=plan, timeout=timeout, quick=quick, result=result),
        "all-reduce": partial(ranks.check_all_reduce, result=result),
    }
    results = [run_check(name, check, LIMIT + timeout * (name == "ranks")) for name, check in checks.items()]
    return [config_check, *results], result.get("bandwidth", [])


def run_check(name: str, function: CheckFunction, limit: float = LIMIT) -> Check:
    """Run one check in a thread. If it hangs or raises an error, it has failed, and the others still run."""
    outcome: Future[Check] = Future()

    def run() -> None:
        findings = Findings(name)
        try:
            function(findings)
        except (OSError, RankzeroError) as error:
            findings.fail(redacted(str(error)), "make the path writable, mount it, free space, or choose another --run")
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
