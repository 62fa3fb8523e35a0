"""The processes of `rankzero prepare`, each with one thread. With one process the work is done in this one."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trainer.data.prepare_work import Workspace, workspaces
from trainer.errors import RankError

Parts = tuple[Any, ...]  # recipe, roles, encoder and check of `workspaces`
Task = tuple[Any, ...]  # the name of a workspace, a method and its arguments

_workspaces: Mapping[str, Workspace] = {}  # of a process of the pool


class Pool:
    """Does work of workspaces in several processes.

    Args:
        folder: of the workspaces.
        workspaces: used if the processes are one.
        processes: at most; they are started when there is more than one task.
        remake: makes recipe, roles, encoder and check in another process, to which it is sent.
    """

    def __init__(
        self,
        folder: Path,
        workspaces: Mapping[str, Workspace],
        processes: int,
        remake: Callable[[], Parts] | None,
    ) -> None:
        self._folder, self._workspaces, self._remake = folder, workspaces, remake
        self._processes = processes if remake else 1
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Call a method of a workspace for each task. Yield tasks and results as they come.

        Raises:
            RankError: a process was killed.
        """
        tasks = iter(tasks)
        ready = list(islice(tasks, 2 if self._processes > 1 else 0))
        if len(ready) < 2:
            for task in chain(ready, tasks):
                yield task, _call(task, self._workspaces)
            return
        pending: dict[Future[Any], Task] = {}
        try:
            for task in chain(ready, tasks):
                pending[self._executor().submit(_call, task)] = task
                if len(pending) > 2 * self._processes:
                    yield from _done(pending)
            while pending:
                yield from _done(pending)
        except BrokenProcessPool:
            raise RankError(
                "prepare: one of its processes was killed, perhaps because memory ran out; the same command resumes, "
                "with fewer --processes if memory is short"
            ) from None

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            assert self._remake is not None
            start = functools.partial(_start, self._remake, self._folder)
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


def _done(pending: dict[Future[Any], Task]) -> Iterator[tuple[Task, Any]]:
    """Wait for a result. Yield all that are there, and remove them from `pending`."""
    for future in wait(pending, return_when=FIRST_COMPLETED).done:
        yield pending.pop(future), future.result()


def _start(remake: Callable[[], Parts], folder: Path) -> None:
    global _workspaces
    for number in (signal.SIGINT, signal.SIGUSR1):  # they also reach the first process, which ends this one
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workspaces = workspaces(folder, *remake())


def _end_with_parent() -> None:
    """End this process when its parent is killed, for which the pool does not care."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(task: Task, of: Mapping[str, Workspace] | None = None) -> Any:
    name, method, *arguments = task
    return getattr((_workspaces if of is None else of)[name], method)(*arguments)
