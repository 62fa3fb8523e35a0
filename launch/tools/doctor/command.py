"""The command `rankzero doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.tools.doctor.diagnosis import diagnose, show
from trainer.cli_arguments import Config

JSON_KEYS = ("name", "status", "found", "fix")


def doctor_command(
    config: Config = None,
    nproc: Annotated[int | None, typer.Option("--nproc", metavar="N", min=1, help="ranks to start")] = None,
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="run directory whose disk is checked; it is not created")
    ] = Path("runs"),
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=8.0, help="for starting and measuring the ranks")
    ] = 120.0,
    quick: Annotated[bool, typer.Option("--quick", help="start no ranks and do not measure the disk speed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check versions, devices, memory, disk, SLURM and communication between ranks, and print what to fix."""
    checks, bandwidth = diagnose(config, nproc, run, timeout=timeout, quick=quick)
    passed = all(check.status != "failed" for check in checks)  # warnings and skipped checks are allowed
    if as_json:
        rows = [{key: getattr(check, key) for key in JSON_KEYS} for check in checks]
        print(json.dumps({"passed": passed, "checks": rows, "bandwidth": bandwidth}, indent=2, ensure_ascii=False))
    else:
        show(checks, bandwidth)
    raise typer.Exit(0 if passed else 1)
