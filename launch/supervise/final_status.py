"""The status of a run whose ranks have died: read it as it is, and write it, because they can no longer do it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from trainer.errors import Preempted, RankzeroError
from trainer.files import read_json, write_json
from trainer.lock import dead_holder
from trainer.rundir import STALE_SECONDS, RunDir

RUN = "RANKZERO_RUN_DIR"  # where the launcher finds the status of its ranks


def write_final_status(run: Path, code: int, reason: str) -> None:
    """Write state, exit code and reason to status.json. The last error of rank zero stays part of the reason.

    Raises:
        RankzeroError: another process uses the run directory, or the file cannot be written.
    """
    folder = RunDir(run)
    if not folder.status.exists():
        return
    with folder.locked():
        status = read_json(folder.status) or {}
        state = "preempted" if code == Preempted.exit_code else "failed"
        earlier = status.get("error")
        result = {"state": state, "exit_code": code, "error": f"{reason}; {earlier}" if earlier else reason}
        write_json(folder.status, {**status, **result})


def is_unfinished(status: dict[str, Any] | None) -> bool:
    """Return whether a status has the state `running` of a training, not of one that waits for another job."""
    return status is not None and status.get("state") == "running" and status.get("exit_code") is None


def current_status(run: Path) -> dict[str, Any]:
    """Return status.json. A run whose process has died on this machine has failed, whatever its file says."""
    status = read_json(RunDir(run).status) or {}
    if is_unfinished(status):
        with contextlib.suppress(OSError):
            if dead := dead_holder(run):
                error = f"{dead} was killed or died before it could say why; the same command resumes"
                return {**status, "state": "failed", "exit_code": 1, "error": error}
    return status


def seconds_silent(status: dict[str, Any]) -> int | None:
    """Return for how long a running run has not updated status.json, or None if it is recent."""
    silent = int(time.time() - (status.get("updated") or 0))
    return silent if status.get("state") == "running" and silent > STALE_SECONDS else None


def settle(run: Path, code: int, reason: str) -> None:
    """Write the final status of ranks that were killed before they could write it, and leave any other status.

    A run directory that another process uses by now, or that cannot be read, is left as it is.
    """
    with contextlib.suppress(RankzeroError, OSError):
        if is_unfinished(read_json(RunDir(run).status)):
            write_final_status(run, code, reason)
