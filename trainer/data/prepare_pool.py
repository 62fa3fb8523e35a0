"""The processes of `rankzero prepare`, each with one thread. With one process the work is done in this one."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trainer.data.prepare_work import Workspace
from trainer.errors import RankError

Parts = tuple[Any, Any, Any]  # recipe, roles and encoder of a `Workspace`

_workspace: Workspace | None = None  # of a process of the pool


class Pool:
    """Does work of a workspace in several processes.

    Args:
        workspace: used if the processes are one.
        processes: at most; they are started when there is more than one task.
        remake: makes recipe, roles and encoder in another process, to which it is sent.
    """

    def __init__(self, workspace: Workspace, processes: int, remake: Callable[[], Parts] | None) -> None:
        self._workspace, self._remake = workspace, remake
        self._processes = processes if remake else 1
        self._pool: ProcessPoolExecutor | None = None

    def run(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call a method of the workspace for each tuple of arguments. Yield the results as they come.

        Raises:
            RankError: a process was killed.
        """
        tasks = iter(tasks)
        ready = list(islice(tasks, 2 if self._processes > 1 else 0))
        if len(ready) < 2:
            for task in chain(ready, tasks):
                yield getattr(self._workspace, method)(*task)
            return
        pending: set[Future[Any]] = set()
        try:
            for task in chain(ready, tasks):
                pending.add(self._executor().submit(_call, method, task))
                while len(pending) > 2 * self._processes:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise RankError(
                "prepare: one of its processes was killed, perhaps because memory ran out; the same command resumes, "
                "with fewer --processes if memory is short"
            ) from None

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            assert self._remake is not None
            start = functools.partial(_start, self._remake, self._workspace.folder)
            context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
            self._pool = ProcessPoolExecutor(self._processes, mp_context=context, initializer=start)
        return self._pool

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the processes. After an error or a signal, do not wait for their tasks, which a next start repeats."""
        if self._pool is not None:
            for child in multiprocessing.active_children() if kind else ():
                child.terminate()
            self._pool.shutdown(cancel_futures=True)


def _start(remake: Callable[[], Parts], folder: Path) -> None:
    global _workspace
    for number in (signal.SIGINT, signal.SIGUSR1):  # they also reach the first process, which ends this one
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workspace = Workspace(folder, *remake())


def _end_with_parent() -> None:
    """End this process when its parent is killed, for which the pool does not care."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(method: str, task: tuple[Any, ...]) -> Any:
    assert _workspace is not None
    return getattr(_workspace, method)(*task)
