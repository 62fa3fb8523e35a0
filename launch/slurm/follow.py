"""`rankzero status`, `logs` and `cancel`: what a run's jobs do, what they say, and how to end them."""

from __future__ import annotations

import contextlib
import glob
import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.slurm.queue import FINAL, JobRecord, Snapshot
from trainer.cli import RunArgument
from trainer.errors import Preempted, RankzeroError, UsageError
from trainer.rundir import STALE_SECONDS, RunDir, read_json, write_json

POLL = 0.5  # seconds between two looks at a log
ASK = 15.0  # seconds between two questions to the controller; doubled after each, up to ASK_MOST
ASK_MOST = 120.0
TAIL = 8  # lines of a log that `status` shows of a job that wrote no status.json


def status_command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="default: all below runs/")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per run")] = False,
) -> None:
    """How runs and their jobs are doing."""
    if run is not None and not run.is_dir():
        raise UsageError(f"{run} is no run directory")
    runs = [run] if run is not None else sorted(path for path in Path("runs").glob("*") if path.is_dir())
    snapshot = Snapshot()
    for path in runs:
        found = look(path, snapshot)
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


def active(run: Path) -> list[JobRecord]:
    """Those of its jobs that wait or run."""
    from launch.slurm import queue

    known = jobs(run)
    if not known or not queue.here():
        return []
    return [entry for entry in queue.entries() if entry.among(known)]


def look(run: Path, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """What status.json says, and the run's jobs as SLURM sees them, or as they ended if it has forgotten them."""
    snapshot = snapshot or Snapshot()
    said = read_json(RunDir(run).status) or {}
    known = jobs(run)
    waiting = [entry for entry in snapshot.waiting if entry.among(known)] if known else []
    entries = [*waiting, *past(run, known, {entry.job for entry in waiting}, snapshot)]
    entries.sort(key=lambda entry: [int(number) for number in re.findall(r"\d+", entry.job)])
    fields = ("state", "step", "attempt", "exit_code", "error", "waits_for", "loss", "share", "left")
    newest = entries[-1] if entries else None
    failed = newest is not None and newest.state in FINAL and newest.state != "COMPLETED"
    wrote = str(said.get("launch") or "").partition(".")[0]  # the job that wrote status.json
    unsaid = newest is not None and (not said or wrote not in ("", newest.job))
    return {
        "run": str(run),
        **{key: said.get(key) for key in fields},
        "silent": _silence(said) if not waiting else None,
        "jobs": [
            {"job": e.job, "kind": _kind(e, known), "state": e.state, "reason": e.reason, "start": e.start}
            for e in entries
        ],
        "log": _end_of_log(run, newest.job) if newest and failed and unsaid else None,
        "seeds": [look(seed, snapshot) for seed in seeds(run, known)],
    }


def seeds(run: Path, known: dict[str, str]) -> list[Path]:
    """The run directories of the seeds of an array, in order."""
    if "array" not in known.values() or not any(kind == "compare" for kind in known.values()):
        return []
    numbered = {path.name.rpartition("-")[2]: path for path in run.parent.glob(f"{glob.escape(run.name)}-seed-*")}
    return [numbered[seed] for seed in sorted(filter(str.isdecimal, numbered), key=int)]


def past(run: Path, known: dict[str, str], current: set[str], snapshot: Snapshot) -> list[JobRecord]:
    """Jobs that have left the queue. Their states are kept in RUN/slurm/states.json, as SLURM forgets them."""
    path = run / "slurm" / "states.json"
    kept = {job: JobRecord(job, *words) for job, words in (read_json(path) or {}).items() if job not in current}
    if any(job not in kept and job not in current for job in known):
        found = {e.job: e for e in snapshot.remembered if e.among(known) and e.job not in current}
        entries = {**_exits(run, known, current), **kept, **found}
        final = {job: [e.state, e.reason] for job, e in entries.items() if e.state in FINAL}
        if final != {job: [e.state, e.reason] for job, e in kept.items()}:
            with contextlib.suppress(OSError, RankzeroError):  # another user's run
                write_json(path, final)
        return list(entries.values())
    return list(kept.values())


def _exits(run: Path, known: dict[str, str], current: set[str]) -> dict[str, JobRecord]:
    """The exit codes that the job scripts wrote themselves."""
    try:
        lines = (run / "slurm" / "ended").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    codes = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    return {
        job: JobRecord(job, "COMPLETED" if code == "0" else "FAILED", f"exit code {code}")
        for job, code in codes.items()
        if job in known and job not in current
    }


def _end_of_log(run: Path, job: str) -> list[str]:
    """The last lines of a job's log: why it ended before rank zero could write status.json."""
    logs = list((run / "slurm").glob(f"*-{job}.out"))
    if not logs:
        return [f"no log {run / 'slurm'}/*-{job}.out: the node of the job may not see or write this directory"]
    return [line[:300] for line in logs[0].read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]]


def _silence(said: dict[str, Any]) -> int | None:
    """Seconds for which a run that says it is running has said nothing more, though it does every two seconds."""
    silent = int(time.time() - said.get("updated", 0))
    return silent if said.get("state") == "running" and silent > STALE_SECONDS else None


def _kind(entry: JobRecord, known: dict[str, str]) -> str:
    return known.get(entry.job) or known[entry.job.partition("_")[0]]


def _line(found: dict[str, Any]) -> str:
    lines = [f"{found['run']}: {found['state'] or 'not begun'}"]
    if found["step"] is not None:
        lines[0] += f"  step {found['step']}, start {found['attempt']}"
    if found["state"] == "running" and found["share"]:
        loss = f", loss {found['loss']:.4f}" if found["loss"] is not None else ""
        left = timedelta(seconds=round(found["left"] or 0))
        lines[0] += f" of about {round(found['step'] / found['share'])} ({found['share']:.0%}), {left} left{loss}"
    if found["waits_for"] and found["state"] == "running":
        lines.append(f"trained, waits for {found['waits_for']}")
    if found["silent"] is not None:
        lines.append(f"no word for {found['silent']} s, no job of it is left: the same command goes on")
    if found["error"]:
        lines.append(found["error"])
    for job in found["jobs"]:
        reason = f" ({job['reason']})" if job["reason"] != "None" else ""
        start = f", expected to start {job['start']}" if job["state"] == "PENDING" and job["start"] != "N/A" else ""
        lines.append(f"job {job['job']} ({job['kind']}): {job['state']}{reason}{start}")
    lines += [f"| {line}" for line in found["log"] or ()]
    lines += ["\n    ".join(_line(seed).split("\n  ")) for seed in found["seeds"]]
    return "\n  ".join(lines)


class Clock:
    """When to ask the controller again: at first and after 15 s, 30 s, 60 s, then every two minutes."""

    def __init__(self, *, asked: bool = False) -> None:
        self._wait = ASK
        self._next = time.monotonic() + (ASK if asked else 0)

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, ASK_MOST)
        return True


# -- logs --------------------------------------------------------------------------------------------------------------


def newest_log(run: Path, *, wait: bool) -> Path:
    """The log that was written to last; with `wait`, once there is one.

    Raises:
        UsageError: there is none.
    """
    clock = Clock()
    while True:
        found = sorted((run / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
        if not wait or (clock.due() and not active(run)):
            raise UsageError(f"{run / 'slurm'} holds no log: no job of this run has begun (rankzero status {run})")
        time.sleep(POLL)


def _tail(log: Path, run: Path, follow: bool, lines: int) -> Iterator[str]:
    """The last lines, then what is added until no job of the run is left."""
    clock = Clock(asked=True)
    with log.open(encoding="utf-8", errors="replace") as file:
        yield from file.readlines()[-lines:] if lines else []
        file.seek(0, 2)
        while follow:
            text = file.read()
            if text:
                clock = Clock(asked=True)  # a job that writes is alive
                yield text
                continue
            if clock.due() and not active(run):
                yield file.read()
                return
            time.sleep(POLL)
