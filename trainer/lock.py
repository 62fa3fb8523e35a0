"""One writer for each run directory, by fencing: a writer that has lost the directory can no longer write to it.

The file `lock` names its holder by a random token, new for each attempt. A thread of the holder updates the file's
time every two seconds, which works on a full disk too. Before each write to the directory the holder reads the
token again (`check_held`). If the token is another one, the write is refused and the process leaves with 75.

A new process decides by what it observes itself, with its own monotonic clock. Clocks of two machines are never
compared. A lock that changes while it is observed has a living holder, and the new process is refused. A lock that
does not change for `SILENT_BEATS` heartbeats is taken over. Only a holder of the same boot, host and PID namespace
is looked up as a process: a dead one is replaced at once, a running one is not waited for.

The holder also keeps a `flock` on its lock file. It makes takeovers exclusive, and while it is held by a process
that cannot be looked up, the new process waits longer. Unlike POSIX locks it stays when another descriptor of the
file is closed. A forked child would keep it after the death of its parent: children close the file at the fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import CheckpointError, LockLost, UsageError
from trainer.lock_file import Look, flock, identity, look, name_of, open_for_flock, parse, state_of, write_new

log = logging.getLogger("rankzero")

HEARTBEAT_SECONDS = 2.0
SILENT_BEATS = 5  # heartbeats without a change of the lock, after which its holder counts as dead
HELD_BEATS = 10  # the same while a process that cannot be looked up still holds the flock: it may only be slow
POLL_SECONDS = 0.1
LEAVE_SECONDS = 1.0  # for the main thread to notice that it has lost the directory
NAME = "lock"

_held: dict[str, RunLock] = {}  # absolute path of a run directory -> its lock in this process


class RunLock:
    """The lock of one run directory in this process.

    Args:
        folder: the run directory.
        token: of the attempt's lock, on ranks other than rank zero, which check it but do not hold it.
    """

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.folder, self.path = folder, folder / NAME
        self.token = token or secrets.token_hex(16)
        self._file: BinaryIO | None = None
        self._loss: str | None = None
        self._stop, self._leaving = threading.Event(), threading.Lock()
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="rankzero-lock", daemon=True)

    # -- taking ----------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take the directory, after waiting for the heartbeat of a holder that may be dead.

        Raises:
            UsageError: another process uses the directory.
            CheckpointError: the lock cannot be written.
        """
        me = identity() | {"token": self.token}
        try:
            self._take(me)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error.strerror or error}; free space or fix rights"
            ) from error
        self._thread.start()

    def _take(self, me: Mapping[str, Any]) -> None:
        first, began, announced = None, time.monotonic(), False
        while True:
            now = look(self.path)
            if now is None:
                with contextlib.suppress(FileExistsError):
                    self._file = write_new(self.path, me)
                    return
                continue
            holder = parse(now.content)
            state = state_of(holder, me)
            first = first or now
            if state == "running" or now != first:
                raise UsageError(
                    f"run directory {self.folder} is in use by {name_of(holder)}: wait for it, stop it, or choose "
                    "another --run"
                )
            waited = (time.monotonic() - began) / HEARTBEAT_SECONDS
            if (state == "dead" or waited >= SILENT_BEATS) and self._replace(now, me, state, waited):
                log.info("run directory %s: taken over from %s", self.folder, name_of(holder))
                return
            if not announced and state != "dead":
                seconds = SILENT_BEATS * HEARTBEAT_SECONDS
                text = "run directory %s was last used by %s: waiting %g s for its heartbeat, then taking over"
                log.info(text, self.folder, name_of(holder), seconds)
                announced = True
            time.sleep(min(POLL_SECONDS, HEARTBEAT_SECONDS))

    def _replace(self, now: Look, me: Mapping[str, Any], state: str, waited: float) -> bool:
        """Replace the lock `now` of a dead holder; False if another process does so, or the holder may be slow."""
        patience = {"dead": 1.0, "stopped": SILENT_BEATS}.get(state, HELD_BEATS)
        try:
            with open_for_flock(self.path) as file:
                if not flock(file) and waited < patience:
                    return False
                if look(self.path) != now:  # another process has replaced it
                    return False
                temporary = self.path.with_name(f".{NAME}.{self.token[:8]}.tmp")
                self._file = write_new(temporary, me)
                temporary.replace(self.path)
        except FileNotFoundError:  # its holder has left
            return False
        return True

    # -- holding ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Read the token again.

        Raises:
            LockLost: the directory belongs to another process, or the lock was removed.
            OSError: the file cannot be read now.
        """
        if self._loss is None:
            now = look(self.path)
            holder = parse(now.content) if now else None
            if now is None:
                if self._file is not None:  # on other ranks: rank zero has left
                    self._loss = "its lock was removed"
            elif holder is None or holder.get("token") != self.token:
                self._loss = f"it was taken over by {name_of(holder)}"
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Raise LockLost if an earlier check has found that the directory is lost."""
        if self._loss is not None:
            raise LockLost(
                f"run directory {self.folder} no longer belongs to this process: {self._loss}. This process writes "
                "nothing more and leaves. Once the directory is free, the same command resumes"
            )

    def heartbeat(self) -> None:
        """Show that the holder lives. Raises as `check`."""
        self.check()
        if self._file is not None:
            os.utime(self._file.fileno())

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.heartbeat()
            except LockLost:
                self._interrupt()
                return
            except OSError:  # a file server that does not answer: nothing is known
                continue

    def _interrupt(self) -> None:
        """Interrupt the main thread, if it has not ended at its next write.

        The signal is a request to stop where stop signals are handled, and a KeyboardInterrupt elsewhere.
        """
        if not self._in_main_thread or self._stop.wait(LEAVE_SECONDS):
            return
        with self._leaving:
            if not self._stop.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def release(self) -> None:
        """Stop the heartbeat and remove the lock if it is still ours."""
        with self._leaving:
            self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError, LockLost):
            self.check()
            if self._file is not None:
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file and with it this process's part of the flock."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[RunLock]:
    """Hold the lock of a run directory, with a heartbeat. An error of a process that has lost it becomes `LockLost`.

    Raises:
        UsageError: another process uses the directory.
        LockLost: the directory was taken over meanwhile.
    """
    lock = RunLock(folder)
    lock.take()
    try:
        with _registered(lock):
            try:
                yield lock
            finally:
                lock.release()
    except BaseException:  # also the interrupt of the heartbeat, wherever it arrived
        lock.raise_if_lost()
        raise


def follow(folder: Path, token: str) -> contextlib.AbstractContextManager[RunLock]:
    """Check the lock that rank zero holds, on another rank, before each write."""
    return _registered(RunLock(folder, token))


def dead_holder(folder: Path) -> str | None:
    """Return the name of a process that died while it held a run directory. None if it runs, or is on another machine.

    Raises:
        OSError: the lock cannot be read.
    """
    now = look(folder / NAME)
    holder = parse(now.content) if now else None
    return name_of(holder) if state_of(holder, identity()) == "dead" else None


def check_held(path: Path) -> None:
    """Check the lock of the run directory that `path` is in, if this process has taken it. Raises LockLost."""
    for lock in _locks_of(path):
        lock.check()


def heartbeat_held(path: Path) -> None:
    """Show that the holder of a run directory lives, besides its regular heartbeat. Raises as `check_held`."""
    for lock in _locks_of(path):
        lock.heartbeat()


def _locks_of(path: Path) -> list[RunLock]:
    absolute = os.path.abspath(path) + os.sep  # noqa: PTH100 - without resolving links
    return [lock for folder, lock in list(_held.items()) if absolute.startswith(folder + os.sep)]


@contextlib.contextmanager
def _registered(lock: RunLock) -> Iterator[RunLock]:
    key = os.path.abspath(lock.folder)  # noqa: PTH100
    _held[key] = lock
    try:
        yield lock
    finally:
        _held.pop(key, None)


def _forget_in_child() -> None:
    """Release a forked child from the locks of its parent, which it neither holds nor checks."""
    for lock in _held.values():
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
