"""How an attempt at a run ends that does not finish: what is told, by whom, and with which exit code."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING

from trainer.errors import CheckpointError, LockLost, OutOfMemory, Preempted, RankError, RankzeroError
from trainer.lock import check_held
from trainer.rundir import RunDir, Status, read_json, write_json

if TYPE_CHECKING:
    from trainer.engine.runtime import Runtime


def full_disk(folder: RunDir, error: BaseException) -> CheckpointError | None:
    """A full disk that was met outside a checkpoint: in the tokenizer, the predictions, a log."""
    from trainer.engine.checkpoint import describe_saved

    words = ("No space left on device", "Disk quota exceeded", "Read-only file system")  # libraries in Rust: no errno
    if isinstance(error, RankzeroError) or not any(reason in str(error) for reason in words):
        return None
    text = f"{folder.path}: {error}; {describe_saved(folder.checkpoints)}. Free space and run the same command again"
    told = CheckpointError(text)
    told.everywhere = getattr(error, "everywhere", False)
    return told


def no_memory(error: BaseException) -> RankError | None:
    """Memory that ran out elsewhere than in a micro-batch, where nothing can be split."""
    from trainer.engine.oom import ran_out

    if isinstance(error, RankzeroError) or not ran_out(error):
        return None
    advice = "`rankzero plan RECIPE` tells which engine and how many ranks fit; an evaluation needs less with a smaller"
    return RankError(f"out of memory: {str(error).splitlines()[0]}; {advice} evaluation.tokens_per_batch")


def report_failure(folder: RunDir, runtime: Runtime, status: Status | None, error: BaseException) -> BaseException:
    """Rank zero writes how the attempt ended into status.json, others leave it a note. Returns what to raise.

    When a rank fails alone, the others meet only a broken connection: its reason is the reason. A note about memory
    stays, for the next start.
    """
    runtime.let_watchdog_end()
    error = _lost_lock(folder) or error
    with contextlib.suppress(RankzeroError, OSError):
        alone = isinstance(error, RankzeroError) and not error.everywhere
        if isinstance(error, OutOfMemory) or (alone and not runtime.main):
            memory = {"splits": error.splits} if isinstance(error, OutOfMemory) else {}
            code = error.exit_code if isinstance(error, RankzeroError) else 1
            write_json(folder.note, {"rank": runtime.rank, "exit_code": code, "error": str(error), **memory})
            runtime.announce_failure()
        if runtime.lost_connection(error) and not runtime.main:
            error = RankError(f"a rank died ({error})")
            error.everywhere = True  # rank zero or the launcher says which
        if not runtime.main or status is None:
            return error
        if runtime.lost_connection(error):
            # gloo: "[file.cc:1] Read error …: Connection reset by peer. This is typically caused by …"
            met = re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0]).partition(". This is typically")[0]
            error = _of_note(folder) or RankError(
                f"a rank died ({met}); the same command goes on from the newest checkpoint"
            )
        code = error.exit_code if isinstance(error, RankzeroError) else 1
        text = str(error) if isinstance(error, RankzeroError) else f"{type(error).__name__}: {error}"
        status.finish("preempted" if code == Preempted.exit_code else "failed", code, text)
        if not isinstance(error, OutOfMemory):
            folder.note.unlink(missing_ok=True)
    return error


def _lost_lock(folder: RunDir) -> LockLost | None:
    """The loss of the run directory, which is then the reason for whatever else has failed, on all ranks."""
    try:
        check_held(folder.path)
    except LockLost as lost:
        return lost
    except OSError:  # it cannot be read: nothing is known
        pass
    return None


def _of_note(folder: RunDir) -> RankzeroError | None:
    """The error that another rank has left a note of."""
    left = read_json(folder.note)
    if left is None:
        return None
    text = f"rank {left['rank']}: {left['error']}".splitlines()[0]
    if "splits" in left:
        return OutOfMemory(text, left["splits"])
    error = RankError(text)
    error.exit_code = left["exit_code"]
    return error


def ended_by_watchdog(folder: RunDir, runtime: Runtime, status: Status | None, verdict: str) -> None:
    """The last words of a rank that its watchdog ends: who hangs, the same on all ranks, so that one speaks if it can;
    or, with an empty verdict, that a rank has left with an error and this one waits for it in vain."""
    error = RankError(verdict) if verdict else (_of_note(folder) or RankError("a rank has left with an error"))
    if status is not None:
        state = "preempted" if error.exit_code == Preempted.exit_code else "failed"
        with contextlib.suppress(RankzeroError):  # the disk is full, or the directory belongs to another process
            status.finish(state, error.exit_code, str(error))
    if runtime.main or verdict.startswith("rank 0"):
        print(f"rankzero: {error}", file=sys.stderr, flush=True)
