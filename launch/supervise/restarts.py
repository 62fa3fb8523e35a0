"""Read the result of a start from the run directory, and start again after a rank ran out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.supervise.exit_codes import ERROR_CODES, PREEMPTED
from launch.supervise.final_status import settle
from trainer.errors import RankzeroError
from trainer.files import read_json
from trainer.rundir import RunDir

KILLED = "the ranks or their launcher were killed; the same command resumes from the newest checkpoint"


def run_with_restarts(start: Callable[[Sequence[str]], int], argv: Sequence[str], run_dir: Path) -> int:
    """Call `start(argv)` until no restart is needed. Return the exit code of the run."""
    while True:
        before = read_status(run_dir)
        code = exit_code_of_run(run_dir, before, start(argv))
        if code in (1, PREEMPTED) and read_status(run_dir) != before:  # of this attempt
            settle(run_dir, code, KILLED)
        if not restart_needed(run_dir, code):
            return code
        argv = [word for word in argv if word != "--fresh"]  # the restart resumes from the newest checkpoint


def restart_needed(run_dir: Path, code: int) -> bool:
    """Return whether a rank ran out of memory, so that the next start splits the micro-batches."""
    return code in (1, PREEMPTED) and "splits" in (_read(RunDir(run_dir).note) or {})


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
    return launcher_code if launcher_code in (0, PREEMPTED) else 1


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(RankzeroError):
        return dict(read_json(path) or {}) or None
    return None
