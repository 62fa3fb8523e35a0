"""Start a launcher in a new session, wait for it, and kill its process tree."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import psutil

from launch.supervise.exit_codes import ERROR_CODES, PREEMPTED, describe_exit
from launch.supervise.signals import PARENT, SignalForwarder

SECOND_CTRL_C_SECONDS = 1.0  # an earlier one is a duplicate of the first
KILL_SECONDS = 10.0  # a driver may delay even SIGKILL
LEAVE_SECONDS = 300.0  # for ranks whose launcher was killed: they save and exit
WATCH_SECONDS = 2.0  # between two looks at a run
START_ID = "RANKZERO_START"  # variable by which the processes of one start are found


class Ended(NamedTuple):
    """How a start ended: its exit code, whether a signal to this process stopped it, and a reason if it was killed.

    The code is 75 if a forwarded signal killed the started process.
    """

    code: int
    stopped: bool = False
    reason: str = ""


def start(command: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a launcher without input, in a session of its own. It ends with this process.

    A terminal sends Ctrl-C to a whole process group, so in this session the ranks would receive it twice.
    """
    own = {**env, PARENT: str(os.getpid())}
    return subprocess.Popen(
        command, env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a launcher. At the end of the block, kill it and its ranks if they still run."""
    process = start(command, env, output)
    try:
        yield process
    finally:
        if process.poll() is None:
            tree = kill_tree(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_SECONDS)
            deadline = time.monotonic() + KILL_SECONDS
            while any(map(is_alive, tree)) and time.monotonic() < deadline:
                time.sleep(0.01)


def run(command: Sequence[str], env: Mapping[str, str], silent: Callable[[], bool] = lambda: False) -> Ended:
    """Run a launcher, or one rank, and forward signals to it. A second Ctrl-C kills it and its ranks.

    No process of a start that has died is left when this returns.

    Args:
        silent: called every two seconds. True kills all processes of the start.
    """
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int) -> None:
        if process:
            process.send_signal(number)
        if number == signal.SIGINT:
            print("\nrankzero: stopping: the ranks save and exit; Ctrl-C again kills them", file=sys.stderr)

    def repeated(number: int, seconds: float) -> None:
        if process and number == signal.SIGINT and seconds > SECOND_CTRL_C_SECONDS:
            kill_tree(process.pid)

    forwarder = SignalForwarder(forward, repeated)
    token, reason = secrets.token_hex(8), ""
    with forwarder.installed():
        process = start(command, {**env, START_ID: token})
        for number in [*forwarder.received]:  # while the launcher was being started
            process.send_signal(number)
        while (code := _wait(process)) is None:
            if silent():
                reason = "all processes of the run were stopped, or their machine was: killed"
                kill_tree(process.pid)
        if code not in (0, PREEMPTED, *ERROR_CODES):
            end_processes(token)
    if code < 0 and not reason:
        reason = f"the started process {describe_exit(code)}; the same command resumes from the newest checkpoint"
    stopped = bool(forwarder.received)
    return Ended(PREEMPTED if code < 0 and stopped else code, stopped, reason)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(WATCH_SECONDS)
    return None


def pause(seconds: float) -> bool:
    """Wait. Return whether a signal asked to stop."""
    stop = threading.Event()
    with SignalForwarder(lambda number: stop.set()).installed():
        return stop.wait(seconds)


def end_processes(token: str, seconds: float | None = None) -> None:
    """Wait for processes that a start has left, then kill them. Ranks have sessions of their own and may outlive it."""
    deadline = time.monotonic() + (LEAVE_SECONDS if seconds is None else seconds)
    while left := [process for process in psutil.process_iter() if is_alive(process) and _token(process) == token]:
        late = time.monotonic() - deadline
        for process in left if late > 0 else ():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if late > KILL_SECONDS:
            return
        time.sleep(0.1)


def _token(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(START_ID)
    except psutil.Error:  # it has ended, or belongs to another user
        return None


def kill_tree(pid: int) -> list[psutil.Process]:
    """Kill a process and all its descendants. Return them.

    The process is stopped first, so that it cannot start another one meanwhile.
    """
    try:
        root = psutil.Process(pid)
        root.suspend()
        tree = [*root.children(recursive=True), root]
    except psutil.Error:
        return []
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return tree


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs. A zombie does not: its parent, or init, has only not yet read its exit code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
