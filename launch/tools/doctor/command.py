"""The command `rankzero doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli import Config

JSON_KEYS = ("name", "status", "found", "fix")


def doctor_command(
    config: Config = None,
    nproc: Annotated[int | None, typer.Option("--nproc", metavar="N", min=1, help="ranks to start")] = None,
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="run directory whose disk is checked; it is not created")
    ] = Path("runs"),
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=8, help="for starting and measuring the ranks")
    ] = 120.0,
    quick: Annotated[bool, typer.Option("--quick", help="start no ranks and do not measure the disk speed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check versions, devices, memory, disk, SLURM and communication between ranks, and print what to fix."""
    from launch.tools.doctor.diagnosis import diagnose, show

    diagnosis = diagnose(config, nproc, run, timeout=timeout, quick=quick)
    if as_json:
        checks = [{key: getattr(check, key) for key in JSON_KEYS} for check in diagnosis.checks]
        answer = {"passed": diagnosis.passed, "checks": checks, "bandwidth": diagnosis.bandwidth}
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        show(diagnosis)
    raise typer.Exit(0 if diagnosis.passed else 1)
