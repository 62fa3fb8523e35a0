"""`rankzero doctor`: what works on this machine, what does not, and what to do about it.

Every check ends by itself: programs and file systems that hang are given up, ranks that hang are named and ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli import Config

if TYPE_CHECKING:
    from launch.doctoring.check import Check

TIMEOUT = 120.0
WAITS = 4  # a rank that keeps the others waiting for this part of the time limit is given up
SHORTEST = 8.0  # seconds


@dataclass(frozen=True)
class Diagnosis:
    """All checks in the order in which they were made, and a row for each size of the all-reduce."""

    checks: list[Check]
    bandwidth: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        """Nothing failed; warnings and skipped checks are allowed."""
        return all(check.status != "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [check.as_dict() for check in self.checks]
        return {"passed": self.passed, "checks": checks, "bandwidth": self.bandwidth}


def doctor_command(
    config: Config = None,
    nproc: Annotated[int | None, typer.Option("--nproc", metavar="N", min=1, help="ranks to start")] = None,
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="run directory whose disk is looked at; need not exist")
    ] = Path("runs"),
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=SHORTEST, help="for starting and measuring the ranks")
    ] = TIMEOUT,
    quick: Annotated[bool, typer.Option("--quick", help="without starting ranks and without the disk's speed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Look at versions, devices, memory, disk, SLURM and the way between the ranks: what works here, what does not."""
    diagnosis = diagnose(config, nproc, run, timeout=timeout, quick=quick)
    if as_json:
        print(json.dumps(diagnosis.as_dict(), indent=2, ensure_ascii=False))
    else:
        from launch.doctoring.show import show

        show(diagnosis.checks, diagnosis.bandwidth, terminal=sys.stdout.isatty())
    raise typer.Exit(0 if diagnosis.passed else 1)


def diagnose(
    config: str | None = None,
    nproc: int | None = None,
    run: Path = Path("runs"),
    *,
    timeout: float = TIMEOUT,
    quick: bool = False,
) -> Diagnosis:
    """Makes all checks.

    Args:
        config: shipped name or path of an Accelerate config; None: as `rankzero train` chooses, but two CPU ranks
            where that would be one process.
        nproc: ranks to start; None: what the config or the number of GPUs says.
        run: the run directory, or a folder above; it is not made.
        timeout: seconds for starting and measuring the ranks.
        quick: leaves out the ranks and the disk's speed.

    Raises:
        UsageError: no such config, or `nproc` does not fit it.
    """
    from launch.doctoring import between, devices, disk, machine, plans, settings, slurm, versions

    plan, planned = plans.chosen(config, nproc)
    checks = [
        *_made("versions", versions.checks),
        *_made("machine", machine.checks),
        *_made("devices", devices.checks),
        planned,
        *_made("configs", lambda: plans.checks(plan)),
        *_made("environment", lambda: settings.checks(plan)),
        *_made("disk", lambda: disk.checks(run, speed=not quick)),
        *_made("slurm", slurm.checks),
    ]
    bandwidth: list[dict[str, Any]] = []

    def ranks() -> list[Check]:
        if quick:
            return between.skipped("left out by --quick")
        if plan is None:
            return between.skipped("the config does not run here")
        if "WORLD_SIZE" in os.environ:
            return between.skipped("a launcher has started this process: WORLD_SIZE is set")
        print(f"rankzero: measuring between {plan.ranks} ranks, {timeout:g} s at most", file=sys.stderr, flush=True)
        found, rows = between.checks(plan, timeout, timeout / WAITS)
        bandwidth.extend(rows)
        return found

    return Diagnosis([*checks, *_made("ranks", ranks)], bandwidth)


def _made(name: str, checks: Callable[[], Sequence[Check]]) -> list[Check]:
    """A mistake of ours in one check must not cost the others."""
    from launch.doctoring.check import Check, without_secrets

    try:
        return list(checks())
    except Exception as error:
        found = without_secrets(f"the check itself failed: {type(error).__name__}: {error}")
        return [Check(name, "failed", found, "this is a mistake in rankzero: please report it with this line")]
