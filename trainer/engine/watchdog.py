"""A rank that hangs is named, with its stack and last step, and nobody waits for it for ever.

Each rank counts what it gets through: collectives entered, micro-batches begun and ended. A thread beside the training
publishes the count in the store of the process group. When a rank has not moved for the limit, its thread compares
the counts: the one that hangs is behind the others, which wait for it. Stacks come from `faulthandler`, whose timer
needs no cooperation of a hanging interpreter.
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

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from trainer.data_parallel import DataParallel
from trainer.engine.rendezvous import ATTEMPT

START_SECONDS = 600.0
GRACE_SECONDS = 8.0  # for a hanging rank whose watchdog works to tell and end by itself
ARM_SECONDS = 1.0  # the timer that writes the stack is set anew at most this often
LEFT, TOLD = "left", "told"  # keys of the store
STACK_AT = 0.7  # of the limit: so that at its end all stacks are written and all counts told
WAITS = ("torch/distributed/", "_engine_run_backward")  # in the stack of a rank that waits for others
ASK_SECONDS = 10.0  # for the store to answer: its own limit does not hold for a server that is stopped


_Found = TypeVar("_Found")


class Watchdog:
    """Watches the main thread of this rank; all ranks of a run have one.

    Args:
        data_parallel: the place of this process.
        limit: seconds without progress that count as hanging; before the first step, when libraries are imported,
            weights loaded and kernels compiled, at least `START_SECONDS`.
        folder: the run directory, where stacks are written (hang-rank-N.txt) while somebody hangs.
        told: called with the verdict by each rank that can still speak, just before it ends with 1.
    """

    def __init__(self, data_parallel: DataParallel, limit: float, folder: Path, told: Callable[[str], None]) -> None:
        self._rank, self._world, self._told = data_parallel.rank, data_parallel.size, told
        self._asked, self._limit = limit, max(limit, START_SECONDS)  # until the first step has been made
        self._folder = folder
        self._count, self._where, self._step, self._alone = 0, "the start", 0, False
        self._moved = self._armed = time.monotonic()
        self._file = stack_file(folder, self._rank).open("w+", encoding="utf-8")
        self._me = {"pid": os.getpid(), "host": socket.gethostname()}
        self._stop = threading.Event()
        self.spoken = threading.Event()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: that of the process group may be blocked by what hangs
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ASK_SECONDS))
        self._store = PrefixStore(f"watch-{os.environ.get(ATTEMPT, '0')}", store)
        self._arm()
        self._thread = threading.Thread(target=self._watch, name="rankzero-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self, where: str, step: int | None = None) -> None:
        """The main thread has got here."""
        self._count, self._where = self._count + 1, where
        self._moved = time.monotonic()
        first = step is not None and self._limit != self._asked
        if step is not None:
            self._step, self._limit = step, self._asked
        if first or self._moved - self._armed > ARM_SECONDS:
            self._arm()

    @contextmanager
    def working_alone(self) -> Iterator[None]:
        """Rank zero works and the others wait: that may take long and is no hanging."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        stack_file(self._folder, self._rank).unlink(missing_ok=True)

    def _arm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(STACK_AT * self._limit, file=self._file)

    def leave(self) -> None:
        """This rank ends with an error: nobody shall wait for it."""
        _within(ASK_SECONDS, partial(self._store.set, LEFT, str(self._rank)))

    # -- the thread ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        published = None
        while not self._stop.wait(min(2.0, self._asked / 10)):
            now = {"count": self._count, "where": self._where, "step": self._step, "alone": self._alone}
            if now != published:
                published = now
                _within(ASK_SECONDS, partial(self._store.set, str(self._rank), json.dumps(now | self._me)))
            if time.monotonic() - self._moved > self._limit:
                self._judge()
            if _within(ASK_SECONDS, partial(self._store.check, [LEFT])) and not self._stop.wait(GRACE_SECONDS):
                self._end("", {})  # the main thread still waits for the rank that has left

    def _judge(self) -> None:
        ranks = _within(ASK_SECONDS, self._all)
        if ranks is None:
            self._end("rank 0, which keeps the ranks' common store, does not answer", {})
            return
        if any(seen["alone"] for seen in ranks.values()):
            return
        last = min(seen["count"] for seen in ranks.values())
        behind = {rank: seen for rank, seen in ranks.items() if seen["count"] == last}
        stacks = {rank: self._stack(rank) for rank in behind}
        active = {rank for rank, stack in stacks.items() if not any(word in _top(stack) for word in WAITS)}
        guilty = {rank: seen for rank, seen in behind.items() if rank in active} or behind
        self._end("\n".join(self._describe(rank, guilty[rank], stacks[rank]) for rank in sorted(guilty)), guilty)

    def _all(self) -> dict[int, dict[str, Any]]:
        """What every rank has published; one that never did has got nowhere.

        In one request where all have: every rank asks, and rank zero answers them all.
        """
        ranks = list(range(self._world))
        if not self._store.check([str(rank) for rank in ranks]):
            ranks = [rank for rank in ranks if self._store.check([str(rank)])]
        told = self._store.multi_get([str(rank) for rank in ranks])
        nothing = {"count": -1, "where": "the start", "step": 0, "alone": False, "pid": None, "host": None}
        return dict.fromkeys(range(self._world), nothing) | {
            rank: json.loads(text) for rank, text in zip(ranks, told, strict=True)
        }

    def _stack(self, rank: int) -> str:
        try:
            return stack_file(self._folder, rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _describe(self, rank: int, seen: Mapping[str, Any], stack: str) -> str:
        place = f"rank {rank} (process {seen['pid']} on {seen['host']})"
        text = f"{place} hangs for more than {self._limit:g} s in {seen['where']} after step {seen['step']}"
        if not stack:
            return f"{text}; it gives no stack: the process is stopped, or its machine is gone"
        return f"{text}; its stack, also in {stack_file(self._folder, rank)}:\n{_main_thread(stack)}"

    def _end(self, verdict: str, guilty: Mapping[int, Mapping[str, Any]]) -> None:
        """Tells and ends this rank; first kills those of this machine that do not end by themselves."""
        if self._stop.is_set():
            return
        self.spoken.set()
        self._told(verdict)
        others = [seen for rank, seen in guilty.items() if rank != self._rank]
        if self._rank == 0:
            _within(ASK_SECONDS, partial(self._store.set, TOLD, ""))
        elif self._rank in guilty:  # rank zero speaks first: our end would break its connection
            _within(GRACE_SECONDS / 2, partial(self._store.wait, [TOLD]))
        time.sleep(GRACE_SECONDS if others else 0)
        for seen in others:
            if seen["host"] == socket.gethostname() and seen["pid"]:
                with suppress(OSError):
                    os.kill(seen["pid"], signal.SIGKILL)
        sys.stderr.flush()
        os._exit(1)


def _within(seconds: float, work: Callable[[], _Found]) -> _Found | None:
    """What `work` finds, in a thread that is left behind if it takes too long; None then, or when it fails."""
    found: list[_Found] = []

    def run() -> None:
        with suppress(dist.DistError, RuntimeError):
            found.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def stack_file(folder: Path, rank: int) -> Path:
    return folder / f"hang-rank-{rank}.txt"


def _main_thread(stack: str) -> str:
    """The main thread's part of a faulthandler dump: the last one."""
    return stack.rstrip().rpartition("\n\n")[2]


def _top(stack: str, frames: int = 4) -> str:
    """The innermost frames of the main thread."""
    return "\n".join(_main_thread(stack).splitlines()[1 : frames + 1])
