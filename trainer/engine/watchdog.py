"""End a run in which a rank hangs, and name that rank with its stack and last step.

Each rank counts its progress: collectives entered, micro-batches begun and ended. A background thread publishes the
count in the store of the process group. When a rank has made no progress for the limit, its thread compares the counts:
the hanging rank is behind the others, which wait for it. Stacks come from `faulthandler`, whose timer works even if the
interpreter is blocked.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from trainer.data_parallel import DataParallel
from trainer.engine.rendezvous import ATTEMPT

START_SECONDS = 600.0  # the least limit before the first step: imports, loading of weights, compilation of kernels
# The least limit there if all ranks wait in collectives: none loads or compiles, but weights may be on their way.
WAITING_SECONDS = 120.0
LOOK_SECONDS = 30.0  # between two looks whether all ranks wait
GRACE_SECONDS = 8.0  # for a hanging rank whose watchdog works to report and end
ARM_SECONDS = 1.0  # the timer that writes the stack is restarted at most this often
FAILED, REPORTED, RECORDED = "failed", "reported", "recorded"  # keys of the store
STACK_AT = 0.7  # of the limit: so that at its end all stacks are written and all counts published
# in the stack of a rank that waits for others
WAITS = ("torch/distributed/", "_engine_run_backward", "engine/host_group.py")
COLLECTIVES = ("torch/distributed/distributed_c10d.py", "engine/host_group.py")  # their innermost frames
WRITTEN = 200  # collectives of a rank in its file
STORE_SECONDS = 10.0  # for the store to answer: its own timeout does not apply to a server that is stopped


_Result = TypeVar("_Result")


class Watchdog:
    """Watches the main thread of this rank. All ranks of a run have one.

    Args:
        data_parallel: the place of this process.
        limit: seconds without progress that count as hanging. Before the first step at least `START_SECONDS`, or
            `WAITING_SECONDS` if all ranks wait in collectives, as after a lost connection.
        folder: the run directory, where stacks (hang-rank-N.txt) and, at the end, the last collectives of each rank
            (hang-rank-N.json) are written while a rank hangs.
        report: called with the reason on each rank that is not blocked, just before it ends with exit code 1.
    """

    def __init__(self, data_parallel: DataParallel, limit: float, folder: Path, report: Callable[[str], None]) -> None:
        self._rank, self._size, self._report = data_parallel.rank, data_parallel.size, report
        self._step_limit, self._limit = limit, max(limit, START_SECONDS)
        self._waiting_limit = max(limit, WAITING_SECONDS)
        self._folder = folder
        self._count, self._where, self._step, self._alone = 0, "the start", 0, False
        self._unanswered = 0  # looks in a row at the store
        self._last_progress = self._armed = time.monotonic()
        self._file = stack_file(folder, self._rank).open("w+", encoding="utf-8")
        collectives_file(folder, self._rank).unlink(missing_ok=True)  # of an earlier start
        self._process = {"pid": os.getpid(), "host": socket.gethostname()}
        self._stop = threading.Event()
        self.reported = threading.Event()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a second connection, because the one of the process group may be blocked by what hangs
        timeout = timedelta(seconds=STORE_SECONDS)
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        self._store = PrefixStore(f"watch-{os.environ.get(ATTEMPT, '0')}", store)
        self._arm()
        self._thread = threading.Thread(target=self._watch, name="rankzero-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self, where: str, step: int | None = None) -> None:
        """Record progress of the main thread."""
        self._count, self._where = self._count + 1, where
        self._last_progress = time.monotonic()
        first = step is not None and self._limit != self._step_limit
        if step is not None:
            self._step, self._limit = step, self._step_limit
            self._waiting_limit = self._step_limit
        if first or self._last_progress - self._armed > ARM_SECONDS:
            self._arm()

    @contextmanager
    def working_alone(self) -> Iterator[None]:
        """Let rank zero work for any time while the other ranks wait."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):  # the disk fails or is read-only: the error that ends the run is the one to report
            self._file.close()
            stack_file(self._folder, self._rank).unlink(missing_ok=True)

    def announce_failure(self) -> None:
        """Notify the other ranks that this one ends with an error, so that they do not wait for it."""
        _within(STORE_SECONDS, partial(self._store.set, FAILED, str(self._rank)))

    def _arm(self) -> None:
        """Let the stack be written unless there is progress, and delete the one from before the last progress."""
        self._armed = time.monotonic()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            if self._file.seek(0, os.SEEK_END):
                self._file.truncate(self._file.seek(0))
        faulthandler.dump_traceback_later(STACK_AT * self._waiting_limit, repeat=True, file=self._file)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        published, wait = None, 0.0  # at once: a rank that is stopped early has to be known
        looked = -LOOK_SECONDS  # when it was looked whether all ranks wait
        while not self._stop.wait(wait):
            wait = min(2.0, self._step_limit / 10)
            progress = {"count": self._count, "where": self._where, "step": self._step, "alone": self._alone}
            if progress != published:
                published = progress
                text = json.dumps(progress | self._process)
                _within(STORE_SECONDS, partial(self._store.set, str(self._rank), text))
            now = time.monotonic()
            if now - self._last_progress > self._limit:
                self._find_hanging(self._limit)
            elif now > max(self._last_progress + self._waiting_limit, looked + LOOK_SECONDS) and self._waits(
                self._rank
            ):
                looked = now
                self._find_hanging(self._waiting_limit)
            if _within(STORE_SECONDS, partial(self._store.check, [FAILED])) and not self._stop.wait(GRACE_SECONDS):
                self._end("", {})  # the main thread still waits for the rank that has failed

    def _waits(self, rank: int) -> bool:
        """Return whether a rank waits in a collective."""
        innermost = _innermost(self._stack(rank), 1)
        return any(file in innermost for file in COLLECTIVES)

    def _find_hanging(self, limit: float) -> None:
        """End the run, unless a rank works alone, or one does not wait although there are `START_SECONDS` for that."""
        ranks = _within(STORE_SECONDS, self._read_all)
        self._unanswered = 0 if ranks else self._unanswered + 1
        if ranks is None:
            if limit < self._limit and self._unanswered < 2:  # rank zero may work alone, and the network be slow once
                return
            self._end("rank 0, which keeps the ranks' common store, does not answer", {})
            return
        if any(progress["alone"] for progress in ranks.values()):
            return
        if limit < self._limit and not all(map(self._waits, ranks)):
            return
        least = min(progress["count"] for progress in ranks.values())
        behind = {rank: progress for rank, progress in ranks.items() if progress["count"] == least}
        stacks = {rank: self._stack(rank) for rank in behind}
        active = {rank for rank, stack in stacks.items() if not any(word in _innermost(stack) for word in WAITS)}
        hanging = {rank: progress for rank, progress in behind.items() if rank in active} or behind
        lines = [self._describe(rank, hanging[rank], stacks[rank], limit) for rank in sorted(hanging)]
        self._end("\n".join(lines), hanging)

    def _read_all(self) -> dict[int, dict[str, Any]]:
        """Return what every rank has published, in one request if all have. Every rank reads, and rank zero answers."""
        ranks = list(range(self._size))
        if not self._store.check([str(rank) for rank in ranks]):
            ranks = [rank for rank in ranks if self._store.check([str(rank)])]
        texts = self._store.multi_get([str(rank) for rank in ranks])
        nothing = {"count": -1, "where": "the start", "step": 0, "alone": False, "pid": None, "host": None}
        return dict.fromkeys(range(self._size), nothing) | {
            rank: json.loads(text) for rank, text in zip(ranks, texts, strict=True)
        }

    def _stack(self, rank: int) -> str:
        try:
            return stack_file(self._folder, rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _describe(self, rank: int, progress: Mapping[str, Any], stack: str, limit: float) -> str:
        text = (
            f"rank {rank} (process {progress['pid']} on {progress['host']}) made no progress for {limit:g} s "
            f"(last seen in {progress['where']}, after step {progress['step']})"
        )
        if not stack:
            return f"{text}; it gives no stack: the process is stopped, or its machine is down"
        return f"{text}; its stack, also in {stack_file(self._folder, rank)}:\n{_main_thread(stack)}"

    def _collectives(self) -> str:
        """Write the last collectives of this rank. Return a sentence about them, empty if torch has recorded none."""
        file = collectives_file(self._folder, self._rank)
        with suppress(Exception):  # whatever a version of torch records: the run has to end
            found = json.loads(_within(STORE_SECONDS, _recorded) or "{}").get("entries", [])[-WRITTEN:]
            file.write_text(json.dumps(found, indent=1), encoding="utf-8")
            last = found[-1]
            return (
                f"the last collective of rank {self._rank} is number {last['collective_seq_id']}, "
                f"{last['profiling_name']} of {last['input_sizes']} in group {last['process_group'][1]}; "
                f"compare {file} with those of other ranks"
            )
        return ""

    def _end(self, reason: str, hanging: Mapping[int, Mapping[str, Any]]) -> None:
        """Report and end this rank. Before, kill the hanging ranks on this machine that do not end in time."""
        if self._stop.is_set():
            return
        self.reported.set()
        if reason:
            reason = f"{reason}\n{self._collectives()}".rstrip("\n")
        self._report(reason)
        # one that hangs itself kills none: the others end as it does
        others = [] if self._rank in hanging else [*hanging.values()]
        _within(STORE_SECONDS, partial(self._store.set, f"{RECORDED}-{self._rank}", ""))
        if self._rank == 0:
            _within(STORE_SECONDS, partial(self._store.set, REPORTED, ""))
            finding = [f"{RECORDED}-{rank}" for rank in range(self._size) if rank not in hanging]
            if hanging and finding:  # they are about to find the same, and to write what they have recorded
                _within(GRACE_SECONDS, partial(self._store.wait, finding))
        elif self._rank in hanging:  # rank zero reports first: if this rank ended now, it would break the connection
            _within(GRACE_SECONDS / 2, partial(self._store.wait, [REPORTED]))
        time.sleep(GRACE_SECONDS if others else 0)
        for progress in others:
            if progress["host"] == socket.gethostname() and progress["pid"]:
                with suppress(OSError):
                    os.kill(progress["pid"], signal.SIGKILL)
        sys.stderr.flush()
        os._exit(1)


def _within(seconds: float, work: Callable[[], _Result]) -> _Result | None:
    """Return the result of `work`, which runs in a thread. Return None if it fails or takes longer than `seconds`."""
    results: list[_Result] = []

    def run() -> None:
        with suppress(dist.DistError, RuntimeError):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _recorded() -> bytes:
    """Return what torch's flight recorder holds, as JSON. It has no public name."""
    found: bytes = torch._C._distributed_c10d._dump_fr_trace_json()  # type: ignore[attr-defined]
    return found


def collectives_file(folder: Path, rank: int) -> Path:
    return folder / f"hang-rank-{rank}.json"


def stack_file(folder: Path, rank: int) -> Path:
    return folder / f"hang-rank-{rank}.txt"


def _main_thread(stack: str) -> str:
    """Return the main thread's part of a faulthandler dump: the last one."""
    return stack.rstrip().rpartition("\n\n")[2]


def _innermost(stack: str, frames: int = 4) -> str:
    """Return the innermost frames of the main thread."""
    return "\n".join(_main_thread(stack).splitlines()[1 : frames + 1])
