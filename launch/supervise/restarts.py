"""Start a run, read its result from the run directory, and start it again after a failure that a restart can fix.

| the start ended | then |
|---|---|
| a rank ran out of memory | at once again, with the micro-batches in more parts |
| with 1: a rank died, hung or lost its connection | again after a pause, within `--restarts` (`RestartPolicy`) |
| because its launcher was killed, also if the ranks then saved and ended with 75 | likewise |
| with 0, 2 to 6 or 75, or after a signal to this process | that is the result of the run |

Each restart is a line of restarts.jsonl in the run directory.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.supervise.exit_codes import ERROR_CODES, PREEMPTED
from launch.supervise.final_status import settle, write_final_status
from launch.supervise.processes import Ended, pause
from launch.supervise.restart_policy import Failures, Restart, RestartPolicy
from trainer.errors import RankzeroError
from trainer.files import read_json
from trainer.rundir import RunDir

KILLED = "the ranks or their launcher were killed; the same command resumes from the newest checkpoint"
RANK_DIED = 1

Start = Callable[[Sequence[str], int], Ended]


def run_with_restarts(
    start: Start,
    argv: Sequence[str],
    run_dir: Path,
    ranks: int = 1,
    policy: RestartPolicy | None = None,
    wait: Callable[[float], bool] = pause,
) -> int:
    """Call `start(argv, ranks)` until no restart is needed. Return the exit code of the run.

    Args:
        wait: wait for so many seconds. Return whether a signal asked to stop.
    """
    run, first, memory = RunDir(run_dir), read_status(run_dir), None
    failures = Failures(policy or RestartPolicy(), run.newest_checkpoint(), ranks)
    while True:
        before = read_status(run_dir)
        ended = start(argv, failures.ranks)
        code = exit_code_of_run(run_dir, before, ended.code)
        if code in (RANK_DIED, PREEMPTED) and read_status(run_dir) != before:  # of this attempt
            settle(run_dir, code, ended.reason or KILLED)
        if ended.stopped:
            return code
        if restart_needed(run_dir, code) and (note := _memory_of(run)) != memory:  # else the start did not read it
            memory = note
            _record(run, ranks=failures.ranks, reason=_reason(run_dir, before, code), exit_code=code, pause=0.0)
        elif not (code == RANK_DIED or (code == PREEMPTED and ended.code < 0)) or not failures.policy.limit:
            return code
        elif not _prepared(run, failures, _reason(run_dir, before, code) if code == RANK_DIED else KILLED, wait):
            return _last_code(run_dir, code)
        if read_status(run_dir) not in (None, first):  # the restart resumes, once the earlier run is set aside
            argv = [word for word in argv if word != "--fresh"]


def _prepared(run: RunDir, failures: Failures, reason: str, wait: Callable[[float], bool]) -> bool:
    """Record a failure and wait for the next start. Return whether there is one."""
    ranks, following = failures.ranks, failures.next(run.newest_checkpoint())
    if isinstance(following, str):
        _record(run, ranks=ranks, reason=reason, exit_code=RANK_DIED, gave_up=following)
        print(f"rankzero: not started again: {following}", file=sys.stderr, flush=True)
        with contextlib.suppress(RankzeroError, OSError):
            write_final_status(run.path, RANK_DIED, f"not started again after {following}")
        return False
    _record(run, ranks=following.ranks, reason=reason, exit_code=RANK_DIED, pause=following.pause)
    print(f"rankzero: {_announcement(failures, following, ranks)}: {reason}", file=sys.stderr, flush=True)
    if wait(following.pause):
        with contextlib.suppress(RankzeroError, OSError):
            write_final_status(run.path, PREEMPTED, "stopped while it waited for its restart")
        return False
    return True


def _announcement(failures: Failures, following: Restart, ranks: int) -> str:
    where = "from the beginning" if failures.step is None else f"from the checkpoint of step {failures.step}"
    fewer = "" if following.ranks == ranks else f" with {following.ranks} instead of {ranks} ranks"
    return f"restart {following.number} of {failures.policy.limit} in {following.pause:g} s {where}{fewer}"


def _last_code(run_dir: Path, code: int) -> int:
    """Return 75 if the wait for a restart was stopped, which status.json says."""
    return PREEMPTED if (read_status(run_dir) or {}).get("exit_code") == PREEMPTED else code


def _record(run: RunDir, **event: Any) -> None:
    """Add a line to restarts.jsonl. A run directory that does not exist or cannot be written has no record."""
    if run.path.is_dir():
        with contextlib.suppress(RankzeroError):
            run.record_restart("rankzero train", **event)


def _reason(run_dir: Path, before: dict[str, Any] | None, code: int) -> str:
    status = read_status(run_dir)
    error = str((status or {}).get("error") or "") if status != before else ""
    return error.partition("\n")[0] or f"the ranks ended with {code} before rank zero could write status.json"


def restart_needed(run_dir: Path, code: int) -> bool:
    """Return whether a rank ran out of memory, so that the next start splits the micro-batches."""
    return code in (RANK_DIED, PREEMPTED) and "splits" in (_read(RunDir(run_dir).note) or {})


def _memory_of(run: RunDir) -> str:
    """Return what the note of a rank that ran out of memory asks of the next start."""
    note = _read(run.note) or {}
    return json.dumps([note.get("splits"), note.get("fuse_lanes")], sort_keys=True)


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """Return status.json of a run directory, or None if it cannot be read."""
    return _read(RunDir(run_dir).status)


def exit_code_of_run(run_dir: Path, before: dict[str, Any] | None, launcher_code: int) -> int:
    """Return the exit code of a launched run. Launchers may lose it, so status.json decides where it is new.

    Args:
        run_dir: where rank zero writes status.json.
        before: `read_status(run_dir)` from before the start. An unchanged one belongs to an earlier attempt.
        launcher_code: counts for an attempt that ended without status.json, because it was refused or a rank died.
    """
    if launcher_code in ERROR_CODES:
        return launcher_code
    status = read_status(run_dir)
    if status and status != before and status.get("state") in ("finished", "preempted", "failed"):
        return int(status["exit_code"])
    return launcher_code if launcher_code in (0, PREEMPTED) else RANK_DIED


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(RankzeroError):
        return dict(read_json(path) or {}) or None
    return None


class Silence:
    """Finds a run all of whose processes are stopped: its status.json and lock do not change any more.

    A start counts from the first change on, because importing libraries and meeting the other ranks changes nothing.
    """

    def __init__(self, run_dir: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        run = RunDir(run_dir)
        self._paths, self._seconds, self._clock = (run.status, run.lock_file), seconds, clock
        self._seen, self._since, self._begun = self._times(), clock(), False

    def __call__(self) -> bool:
        """Return whether nothing has changed for too long."""
        now, seen = self._clock(), self._times()
        if seen != self._seen:
            self._seen, self._since, self._begun = seen, now, True
        return self._begun and self._seconds > 0 and now - self._since > self._seconds

    def _times(self) -> list[int | None]:
        times: list[int | None] = []
        for path in self._paths:
            try:
                times.append(path.stat().st_mtime_ns)
            except OSError:
                times.append(None)
        return times
