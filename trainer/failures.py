"""Report how an attempt at a run failed: to status.json, to the other ranks, and as the error to raise."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

from trainer.engine.checkpoint import describe_saved
from trainer.errors import (
    CheckpointError,
    LockLost,
    OutOfMemory,
    Preempted,
    RankError,
    RankzeroError,
    ran_out_of_memory,
)
from trainer.files import read_json, write_json
from trainer.lock import check_held
from trainer.rundir import RunDir, Status

if TYPE_CHECKING:
    from trainer.engine.runtime import Runtime

DISK_FULL = ("No space left on device", "Disk quota exceeded", "Read-only file system")  # libraries in Rust: no errno


def report_failure(run: RunDir, runtime: Runtime, status: Status | None, error: BaseException) -> BaseException:
    """Write how the attempt ended. Return the error to raise.

    Rank zero writes status.json. Another rank that fails alone leaves a note in the run directory. If a rank fails
    alone, the other ranks see a broken connection only, so its note is the reason. A note about memory is kept for the
    next start.
    """
    runtime.let_watchdog_end()
    error = _full_disk(run, error) or _out_of_memory(error) or _dead_loader(error) or error
    error = _lost_lock(run) or error
    with contextlib.suppress(RankzeroError, OSError):
        alone = isinstance(error, RankzeroError) and not error.everywhere
        if isinstance(error, OutOfMemory) or (alone and not runtime.main):
            _write_note(run, runtime, error)
        if runtime.lost_connection(error) and not runtime.main:
            error = RankError(f"a rank died ({error})")
            error.everywhere = True  # rank zero or the launcher reports which
        if not runtime.main or status is None:
            return error
        if runtime.lost_connection(error):
            error = _read_note(run) or _died(error)
        text = str(error) if isinstance(error, RankzeroError) else f"{type(error).__name__}: {error}"
        _finish(status, _exit_code(error), text)
        if not isinstance(error, OutOfMemory):
            run.note.unlink(missing_ok=True)
    return error


def report_hang(run: RunDir, runtime: Runtime, status: Status | None, reason: str) -> None:
    """Report for a rank that its watchdog ends.

    Args:
        reason: which rank makes no progress, the same on all ranks. Empty if a rank has left with an error and this
            one would wait for it forever.
    """
    error = RankError(reason) if reason else (_read_note(run) or RankError("a rank has left with an error"))
    if status is not None:
        with contextlib.suppress(RankzeroError):  # the disk is full, or the directory belongs to another process
            _finish(status, error.exit_code, str(error))
    if runtime.main or reason.startswith("rank 0"):
        print(f"rankzero: {error}", file=sys.stderr, flush=True)


def _full_disk(run: RunDir, error: BaseException) -> CheckpointError | None:
    """Return the error of a full disk outside a checkpoint: in the tokenizer, the predictions, a log."""
    if isinstance(error, RankzeroError) or not any(reason in str(error) for reason in DISK_FULL):
        return None
    text = f"{run.path}: {error}; {describe_saved(run.checkpoints)}. Free space and run the same command again"
    found = CheckpointError(text)
    found.everywhere = getattr(error, "everywhere", False)
    return found


def _out_of_memory(error: BaseException) -> RankError | None:
    """Return the error of memory that ran out outside a micro-batch, where nothing can be split."""
    if isinstance(error, RankzeroError) or not ran_out_of_memory(error):
        return None
    advice = "`rankzero plan RECIPE` shows which engine and how many ranks fit; an evaluation needs less with a smaller"
    return RankError(f"out of memory: {str(error).splitlines()[0]}; {advice} evaluation.tokens_per_batch")


def _dead_loader(error: BaseException) -> RankError | None:
    """Return the error of a loader process that was killed, which torch raises wherever the rank is."""
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker"):
        return None
    return RankError(
        f"a loader process died ({str(error).strip().rstrip('.')}); the same command resumes from the newest "
        "checkpoint. If the kernel killed it because memory ran out, set data.workers lower"
    )


def _lost_lock(run: RunDir) -> LockLost | None:
    """Return the loss of the run directory, which explains any other error, on all ranks."""
    try:
        check_held(run.path)
    except LockLost as lost:
        return lost
    except OSError:  # the lock cannot be read: nothing is known
        pass
    return None


def _died(error: BaseException) -> RankError:
    """Return the error of a broken connection whose other end left no note."""
    # gloo: "[file.cc:1] Read error …: Connection reset by peer. This is typically caused by …"
    reason = re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". This is typically")[0]
    return RankError(f"a rank died ({reason}); the same command resumes from the newest checkpoint")


def _exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, RankzeroError) else 1


def _finish(status: Status, code: int, text: str) -> None:
    status.finish("preempted" if code == Preempted.exit_code else "failed", code, text)


def _write_note(run: RunDir, runtime: Runtime, error: BaseException) -> None:
    """Leave the error for rank zero, and let the other ranks' watchdogs know."""
    memory: dict[str, Any] = {}
    if isinstance(error, OutOfMemory):
        memory = {"splits": error.splits} | ({"fuse_lanes": error.fuse_lanes} if error.fuse_lanes else {})
    write_json(run.note, {"rank": runtime.rank, "exit_code": _exit_code(error), "error": str(error), **memory})
    runtime.announce_failure()


def _read_note(run: RunDir) -> RankzeroError | None:
    """Return the error that another rank has left a note of."""
    note = read_json(run.note)
    if note is None:
        return None
    text = f"rank {note['rank']}: {note['error']}".splitlines()[0]
    if "splits" in note:
        return OutOfMemory(text, note["splits"], note.get("fuse_lanes"))
    error = RankError(text)
    error.exit_code = note["exit_code"]
    return error
