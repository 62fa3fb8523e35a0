"""`rankzero status`, `logs` and `cancel`: what a run's jobs do, what they say, and how to end them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli import RunArgument
from trainer.errors import UsageError
from trainer.rundir import RunDir, read_json

if TYPE_CHECKING:
    from launch.slurm.queue import Entry

POLL = 0.5  # seconds between two looks at a log
ASK = 10.0  # seconds between two questions to the controller


def status_command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="default: all below runs/")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per run")] = False,
) -> None:
    """How runs and their jobs are doing."""
    if run is not None and not run.is_dir():
        raise UsageError(f"{run} is no run directory")
    runs = [run] if run is not None else sorted(path for path in Path("runs").glob("*") if path.is_dir())
    for path in runs:
        found = look(path)
        print(json.dumps(found, ensure_ascii=False) if as_json else _line(found))


def logs_command(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until its jobs have ended")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="from the end")] = 200,
) -> None:
    """The log of a run's newest job."""
    log = newest_log(run, wait=follow)
    for text in _tail(log, run, follow, lines):
        sys.stdout.write(text)
        sys.stdout.flush()


def cancel_command(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="plain scancel: SLURM kills what has not saved in time")] = False,
) -> None:
    """End a run's jobs for good: what runs saves first; nothing is requeued."""
    from launch.slurm import queue

    found = active(run)
    if not found:
        print(f"{run}: no job is waiting or running")
        return
    running = [entry.job for entry in found if entry.state == "RUNNING" and not now]
    others = [entry.job for entry in found if entry.job not in running]
    if others:
        queue.cancel(others)
    if running:  # a TERM to the batch shell alone: it lets the ranks save, however long that takes, and is not requeued
        queue.cancel(running, "--batch", "--signal=TERM")
    for entry in found:
        print(f"job {entry.job} ({entry.state}): {'told to save and leave' if entry.job in running else 'cancelled'}")


# -- the jobs of a run -------------------------------------------------------------------------------------------------


def note(run: Path, job: int, kind: str) -> None:
    """Remembers a job of a run, as the scripts do themselves when they begin."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    with (run / "slurm" / "jobs").open("a", encoding="utf-8") as file:
        file.write(f"{job} {kind}\n")


def jobs(run: Path) -> dict[int, str]:
    """The jobs of a run and what they do, oldest first."""
    try:
        lines = (run / "slurm" / "jobs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {int(job): kind for job, _, kind in (line.partition(" ") for line in lines) if job.isdigit()}


def active(run: Path) -> list[Entry]:
    """Those of its jobs that wait or run. Only a run's own task of an array counts as its own."""
    from launch.slurm import queue

    known = jobs(run)
    if not known or not queue.here():
        return []
    return [entry for entry in queue.entries() if entry.job in known or entry.array in known]


def look(run: Path) -> dict[str, Any]:
    """What status.json says, and the run's jobs as SLURM sees them."""
    from launch.slurm import queue

    said = read_json(RunDir(run).status) or {}
    waiting = active(run)
    seen = {entry.job for entry in waiting} | {entry.array for entry in waiting}
    gone = [queue.ended(job) for job in jobs(run) if job not in seen] if queue.here() else []
    entries = [*(entry for entry in gone if entry), *waiting]
    return {
        "run": str(run),
        **{key: said.get(key) for key in ("state", "step", "attempt", "exit_code", "error")},
        "jobs": [{"job": e.job, "state": e.state, "reason": e.reason} for e in entries],
    }


def _line(found: dict[str, Any]) -> str:
    step = "" if found["step"] is None else f"  step {found['step']}, start {found['attempt']}"
    error = f"\n  {found['error']}" if found["error"] else ""
    told = "".join(f"\n  job {job['job']}: {job['state']} ({job['reason']})" for job in found["jobs"])
    return f"{found['run']}: {found['state'] or 'not begun'}{step}{error}{told}"


# -- logs --------------------------------------------------------------------------------------------------------------


def newest_log(run: Path, *, wait: bool) -> Path:
    """The log that was written to last; with `wait`, once there is one.

    Raises:
        UsageError: there is none.
    """
    while True:
        found = sorted((run / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
        if not wait or not active(run):
            raise UsageError(f"{run / 'slurm'} holds no log: no job of this run has begun (rankzero status {run})")
        time.sleep(POLL)


def _tail(log: Path, run: Path, follow: bool, lines: int) -> Iterator[str]:
    """The last lines, then what is added until no job of the run is left."""
    asked = time.monotonic()
    with log.open(encoding="utf-8", errors="replace") as file:
        yield from file.readlines()[-lines:] if lines else []
        file.seek(0, 2)
        while follow:
            text = file.read()
            if text:
                yield text
                continue
            if time.monotonic() - asked > ASK:
                asked = time.monotonic()
                if not active(run):
                    yield file.read()
                    return
            time.sleep(POLL)
