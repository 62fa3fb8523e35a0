"""`rankzero status`, `logs` and `cancel`: show and end the jobs of a run."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from launch.slurm import queue
from launch.slurm.queue import FINAL, JobRecord, Snapshot
from launch.slurm.render import CONTROL
from launch.supervise.final_status import current_status, seconds_silent, write_final_status
from launch.sweep_folder import sweep_lines, sweep_state
from trainer.cli_arguments import RunArgument
from trainer.errors import OF_FORM, Preempted, RankzeroError, UsageError
from trainer.files import read_json, regular_size, write_json
from trainer.redaction import printable
from trainer.run_folders import is_sweep, runs_below
from trainer.rundir import RunDir, no_run

POLL = 0.5  # seconds between two reads of a log
ASK = 30.0  # seconds between two calls of squeue
TAIL = 8  # lines of a log that `status` shows for a job that wrote no status.json
CHAIN = "chain"  # file in RUN/slurm with the jobs of the newest chain, in order
JOB = re.compile(r"[0-9]{1,18}(_[0-9]{1,18})?")  # a job of SLURM, or a task of an array
END_BYTES = 1 << 16  # that are read of a log for its last lines
STATUS_FIELDS = ("state", "step", "attempt", "exit_code", "error", "waits_for", "loss", "share", "left")


def status_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="or a folder of runs, such as SWEEP/trials (default runs/)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per run")] = False,
) -> None:
    """Show the state of runs and their jobs."""
    if run is not None and not run.is_dir():
        raise no_run(run)
    found = [*runs_below(run or Path("runs"))]
    snapshot, code = Snapshot(), 0
    for path in found or ([run] if run is not None else []):
        try:
            state = state_of(path, snapshot)
        except RankzeroError as error:  # a damaged run does not hide the others
            if path == run:
                raise
            print(printable(f"{path}: {error}"), file=sys.stderr)
            code = error.exit_code
            continue
        print(json.dumps(state, ensure_ascii=False) if as_json else printable(_text(state)))
    if code:
        raise typer.Exit(code)


def logs_command(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="continue until its jobs have ended")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="from the end")] = 200,
) -> None:
    """Show the log of a run's newest job."""
    if not run.is_dir():
        raise no_run(run)
    log = newest_log(run, wait=follow)
    for text in _tail(log, run, follow, lines):
        sys.stdout.write(text)
        sys.stdout.flush()


def cancel_command(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="plain scancel: SLURM kills ranks that save too slowly")] = False,
) -> None:
    """Cancel a run's jobs. Running ones save first. None is requeued."""
    if not run.is_dir():
        raise no_run(run)
    jobs = active(run)
    if not jobs:
        print(f"{run}: no job is waiting or running")
    own = [job for job in jobs if job.of_run(run)]  # RUN/slurm/jobs may come with a run directory of another user
    saving = [job.job for job in own if job.state == "RUNNING" and not now]
    at_once = [job.job for job in own if job.job not in saving]
    if at_once:
        queue.cancel(at_once)
    if own and not saving:
        _report_cancelled_last_stage(run)
    if saving:  # a TERM to the batch shell alone: it lets the ranks save, however long that takes, and is not requeued
        queue.cancel(saving, "--batch", "--signal=TERM")
    for job in jobs:
        if job not in own:
            action = f"not cancelled: its script {job.script} is not of this run; if it is, scancel {job.job}"
        else:
            action = "asked to save and exit" if job.job in saving else "cancelled"
        print(f"job {job.job} ({job.state}): {action}")


def _report_cancelled_last_stage(run: Path) -> None:
    """Write to status.json that the job of the last stage was cancelled before it began."""
    status = read_json(RunDir(run).status) or {}
    if status.get("state") == "running" and status.get("waits_for"):
        reason = f"cancelled before {status['waits_for']} had begun; the same command does it"
        write_final_status(run, Preempted.exit_code, reason)


# -- the jobs of a run -------------------------------------------------------------------------------------------------


def record_job(run: Path, job: str, kind: str) -> None:
    """Add a job to RUN/slurm/jobs, as the scripts do when they begin."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    with (run / "slurm" / "jobs").open("a", encoding="utf-8") as file:
        file.write(f"{job} {kind}\n")


def recorded_jobs(run: Path) -> dict[str, str]:
    """Return the kinds of a run's jobs by job, oldest first. For a seed of an array they are tasks of it."""
    lines = (line.partition(" ") for line in _lines(run / "slurm" / "jobs"))
    return {job: kind for job, _, kind in lines if JOB.fullmatch(job)}


def chain_of(run: Path) -> list[str]:
    """Return the jobs of the newest chain of a run, in order."""
    return [line for line in _lines(run / "slurm" / CHAIN) if JOB.fullmatch(line)]


def active(run: Path) -> list[JobRecord]:
    """Return the waiting and running jobs of a run."""
    recorded = recorded_jobs(run)
    if not recorded or not queue.here():
        return []
    return [job for job in queue.waiting_or_running() if job.among(recorded)]


def state_of(run: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Return the content of status.json and the run's jobs, by SLURM or, if it has forgotten them, by the run."""
    recorded = recorded_jobs(run)
    waiting = [job for job in snapshot.waiting_or_running if job.among(recorded)] if recorded else []
    jobs = [*waiting, *ended_jobs(run, recorded, {job.job for job in waiting}, snapshot)]
    jobs.sort(key=lambda job: [int(number) for number in re.findall(r"\d+", job.job)])
    status = (read_json(RunDir(run).status) or {}) if waiting else current_status(run)
    newest = jobs[-1] if jobs else None
    failed = newest is not None and newest.state in FINAL and newest.state != "COMPLETED"
    writer = str(status.get("launch") or "").partition(".")[0]  # the job that wrote status.json
    unreported = newest is not None and (not status or writer not in ("", "elastic", newest.job))
    return {
        "run": str(run),
        **{key: status.get(key) for key in STATUS_FIELDS},
        "best": best_score(RunDir(run)),
        "silent": None if waiting else seconds_silent(status),
        "restarts": RunDir(run).read_restarts(),
        "jobs": [
            {"job": job.job, "kind": _kind(job, recorded), "state": job.state, "reason": job.reason, "start": job.start}
            for job in jobs
        ],
        "chain": [job for job in chain_of(run) if job in {one.job for one in waiting if one.state == "PENDING"}],
        "log": _end_of_log(run, newest.job) if newest and failed and unreported else None,
        "seeds": [state_of(seed, snapshot) for seed in seeds(run, recorded)],
        **({"sweep": sweep_state(run)} if is_sweep(run) else {}),
    }


def best_score(run: RunDir) -> dict[str, Any] | None:
    """Return metric, value and step of the selected weights, or else of the best evaluation so far, on `validation`.

    None before the first checkpoint with an evaluation, and for damaged files: status shows the rest.
    """
    with contextlib.suppress(OSError, yaml.YAMLError, *OF_FORM):
        found = run.stages().get("model") or {}
        if found.get("value") is None and (step := run.newest_checkpoint()) is not None:
            recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
            state = read_json(run.checkpoints / f"step-{step:08d}" / "state.json") or {}
            found = {**state["best"], "metric": recipe["loop"]["early_stopping"]["metric"]}
        if math.isfinite(value := float(found["value"])):
            return {"metric": str(found["metric"]), "value": value, "step": found.get("step")}
    return None


def seeds(run: Path, recorded: dict[str, str]) -> list[Path]:
    """Return the run directories of the seeds of an array, in order."""
    if not {"array", "compare"} <= {*recorded.values()}:
        return []
    numbered = {path.name.rpartition("-")[2]: path for path in run.parent.glob(f"{glob.escape(run.name)}-seed-*")}
    return [numbered[seed] for seed in sorted(filter(str.isdecimal, numbered), key=int)]


def ended_jobs(run: Path, recorded: dict[str, str], current: set[str], snapshot: Snapshot) -> list[JobRecord]:
    """Return the jobs that have left the queue. RUN/slurm/states.json keeps their states, because SLURM forgets."""
    path = run / "slurm" / "states.json"
    kept = {
        job: JobRecord(job, *words)
        for job, words in (read_json(path) or {}).items()
        if job not in current and JOB.fullmatch(job) and _is_state(words)
    }
    kept = {name: job for name, job in kept.items() if job.among(recorded)}  # another's file may have more
    if all(job in kept or job in current for job in recorded):
        return list(kept.values())
    remembered = {job.job: job for job in snapshot.remembered if job.among(recorded) and job.job not in current}
    jobs = {**_exits(run, recorded, current), **kept, **remembered}
    final = {name: [job.state, job.reason] for name, job in jobs.items() if job.state in FINAL}
    if final != {name: [job.state, job.reason] for name, job in kept.items()}:
        with contextlib.suppress(OSError, RankzeroError):  # the run of another user
            write_json(path, final)
    return list(jobs.values())


def _exits(run: Path, recorded: dict[str, str], current: set[str]) -> dict[str, JobRecord]:
    """Return the jobs whose scripts wrote their exit codes."""
    words = (line.split() for line in _lines(run / "slurm" / "ended"))
    codes = {job: code for job, code, *_ in (pair for pair in words if len(pair) >= 2)}
    return {
        job: JobRecord(job, "COMPLETED" if code == "0" else "FAILED", f"exit code {code}")
        for job, code in codes.items()
        if job in recorded and job not in current
    }


def _is_state(words: object) -> bool:
    """Return whether an entry of states.json is state and reason."""
    return isinstance(words, list) and len(words) == 2 and all(isinstance(word, str) for word in words)


def _lines(path: Path) -> list[str]:
    try:
        regular_size(path)
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _end_of_log(run: Path, job: str) -> list[str]:
    """Return the last lines of a job's log: why it ended before rank zero could write status.json."""
    logs = [path for path in (run / "slurm").glob(f"*-{job}.out") if path.is_file()]
    if not logs:
        return [f"no log {run / 'slurm'}/*-{job}.out: the node of the job may not see or write this directory"]
    with logs[0].open("rb") as file:
        file.seek(-min(END_BYTES, logs[0].stat().st_size), 2)
        return [line[:300] for line in file.read(END_BYTES).decode("utf-8", "replace").splitlines()[-TAIL:]]


def _kind(job: JobRecord, recorded: dict[str, str]) -> str:
    return recorded.get(job.job) or recorded[job.job.partition("_")[0]]


def _text(state: dict[str, Any]) -> str:
    lines = [f"{state['run']}: {state['state'] or 'not begun'}"]
    if state["step"] is not None:
        lines[0] += f"  step {state['step']}, start {state['attempt']}"
    trained = state["state"] == "running" and state["waits_for"]
    if state["state"] == "running" and state["share"] and state["step"] is not None and not trained:
        loss = f", loss {state['loss']:.4f}" if state["loss"] is not None else ""
        left = timedelta(seconds=round(state["left"] or 0))
        lines[0] += f" of about {round(state['step'] / state['share'])} ({state['share']:.0%}), {left} left{loss}"
    if best := state["best"]:
        at = "" if best["step"] is None else f" (step {best['step']})"
        lines[0] += CONTROL.sub(" ", f", best {best['metric']} {best['value']:.4g}{at}")
    if trained:
        lines.append(f"trained, waits for {state['waits_for']}")
    if trained and not any(job["state"] not in FINAL for job in state["jobs"]):
        lines[-1] += "; none is left: the same command does it"
    elif state["silent"] is not None:
        lines.append(f"no update for {state['silent']} s, and none of its jobs is left: the same command resumes")
    if state["error"]:
        lines.append(state["error"])
    lines += sweep_lines(state["sweep"]) if "sweep" in state else []
    lines += _restarts(state["restarts"])
    for job in state["jobs"]:
        reason = f" ({job['reason']})" if job["reason"] != "None" else ""
        start = f", expected to start {job['start']}" if job["state"] == "PENDING" and job["start"] != "N/A" else ""
        lines.append(f"job {job['job']} ({job['kind']}): {job['state']}{reason}{start}")
    if state["chain"]:
        lines.append(f"chain: {', '.join(state['chain'])} continue in turn if the run does not end before")
    lines += [f"| {line}" for line in state["log"] or ()]
    lines += ["\n    ".join(_text(seed).split("\n  ")) for seed in state["seeds"]]
    return "\n  ".join(lines)


def _restarts(events: list[dict[str, Any]]) -> list[str]:
    """Return a line about the restarts after failures: their number and the newest one."""
    if not events:
        return []
    last, number = events[-1], sum("gave_up" not in event for event in events)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(last.get("time") or 0)))
    where = "" if last.get("step") is None else f" from step {last['step']}"
    action = f"not started again: {last['gave_up']}" if "gave_up" in last else f"started again{where}"
    ranks = f" with {last['ranks']} ranks" if last.get("ranks") and "gave_up" not in last else ""
    text = (
        f"restarts after failures: {number}; {when} {action}{ranks} (by {last.get('by')}) after: {last.get('reason')}"
    )
    return [CONTROL.sub(" ", text)]


# -- logs --------------------------------------------------------------------------------------------------------------


def newest_log(run: Path, *, wait: bool) -> Path:
    """Return the log that was written to last. With `wait`, wait until there is one.

    Raises:
        UsageError: there is none.
    """
    next_call = time.monotonic()
    while not (
        logs := sorted(filter(Path.is_file, (run / "slurm").glob("*.out")), key=lambda log: log.stat().st_mtime)
    ):
        if time.monotonic() >= next_call or not wait:
            if not wait or not active(run):
                raise UsageError(f"{run / 'slurm'} has no log: no job of this run has begun (rankzero status {run})")
            next_call = time.monotonic() + ASK
        time.sleep(POLL)
    return logs[-1]


def _tail(log: Path, run: Path, follow: bool, lines: int) -> Iterator[str]:
    """Yield the last lines, then new text until no job of the run is left."""
    with log.open(encoding="utf-8", errors="replace") as file:
        yield from deque(file, maxlen=lines)
        file.seek(0, 2)
        quiet_since = time.monotonic()
        while follow:
            if text := file.read():
                quiet_since = time.monotonic()  # a job that writes is running
                yield text
            elif time.monotonic() - quiet_since < ASK:
                time.sleep(POLL)
            elif active(run):
                quiet_since = time.monotonic()
            else:
                yield file.read()
                return
