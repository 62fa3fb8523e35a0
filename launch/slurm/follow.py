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
from trainer.errors import Preempted, UsageError
from trainer.rundir import STALE_SECONDS, RunDir, read_json

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
    _cancelled_before_the_last_stage(run, left=bool(running))
    if running:  # a TERM to the batch shell alone: it lets the ranks save, however long that takes, and is not requeued
        queue.cancel(running, "--batch", "--signal=TERM")
    for entry in found:
        print(f"job {entry.job} ({entry.state}): {'told to save and leave' if entry.job in running else 'cancelled'}")


def _cancelled_before_the_last_stage(run: Path, *, left: bool) -> None:
    """Nobody else would say so in status.json: the job that would have done the rest has never begun."""
    from launch.slurm.settle import settle

    status = read_json(RunDir(run).status) or {}
    if not left and status.get("state") == "running" and status.get("waits_for"):
        settle(run, Preempted.exit_code, f"cancelled before {status['waits_for']} had begun; the same command does it")


# -- the jobs of a run -------------------------------------------------------------------------------------------------


def note(run: Path, job: str, kind: str) -> None:
    """Remembers a job of a run, as the scripts do themselves when they begin."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    with (run / "slurm" / "jobs").open("a", encoding="utf-8") as file:
        file.write(f"{job} {kind}\n")


def jobs(run: Path) -> dict[str, str]:
    """The jobs of a run and what they do, oldest first; of one that an array has trained, its own task."""
    try:
        lines = (run / "slurm" / "jobs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {job: kind for job, _, kind in (line.partition(" ") for line in lines) if job[:1].isdigit()}


def active(run: Path) -> list[Entry]:
    """Those of its jobs that wait or run."""
    from launch.slurm import queue

    known = jobs(run)
    if not known or not queue.here():
        return []
    return [entry for entry in queue.entries() if entry.among(known)]


def look(run: Path) -> dict[str, Any]:
    """What status.json says, and the run's jobs as SLURM sees them."""
    from launch.slurm import queue

    said = read_json(RunDir(run).status) or {}
    waiting, known = active(run), jobs(run)
    gone = [entry for job in known if queue.here() for entry in queue.ended(job)]
    current = {entry.job for entry in waiting}
    entries = [*(entry for entry in gone if entry.job not in current), *waiting]
    entries.sort(key=lambda entry: [int(number) for number in entry.job.split("_")])
    return {
        "run": str(run),
        **{key: said.get(key) for key in ("state", "step", "attempt", "exit_code", "error", "waits_for")},
        "silent": _silence(said) if not waiting else None,
        "jobs": [{"job": e.job, "kind": _kind(e, known), "state": e.state, "reason": e.reason} for e in entries],
    }


def _silence(said: dict[str, Any]) -> int | None:
    """Seconds for which a run that says it is running has said nothing more, though it does every two seconds."""
    silent = int(time.time() - said.get("updated", 0))
    return silent if said.get("state") == "running" and silent > STALE_SECONDS else None


def _kind(entry: Entry, known: dict[str, str]) -> str:
    return known.get(entry.job) or known[entry.job.partition("_")[0]]


def _line(found: dict[str, Any]) -> str:
    lines = [f"{found['run']}: {found['state'] or 'not begun'}"]
    if found["step"] is not None:
        lines[0] += f"  step {found['step']}, start {found['attempt']}"
    if found["waits_for"] and found["state"] == "running":
        lines.append(f"trained, waits for {found['waits_for']}")
    if found["silent"] is not None:
        lines.append(f"no word for {found['silent']} s, no job of it is left: the same command goes on")
    if found["error"]:
        lines.append(found["error"])
    for job in found["jobs"]:
        reason = f" ({job['reason']})" if job["reason"] != "None" else ""
        lines.append(f"job {job['job']} ({job['kind']}): {job['state']}{reason}")
    return "\n  ".join(lines)


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
