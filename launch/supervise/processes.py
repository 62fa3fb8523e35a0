"""Start a launcher in a new session, wait for it, and kill its process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import psutil

from launch.supervise.exit_codes import PREEMPTED
from launch.supervise.signals import PARENT, SignalForwarder

SECOND_CTRL_C_SECONDS = 1.0  # an earlier one is a duplicate of the first
KILL_SECONDS = 10.0  # a driver may delay even SIGKILL


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


def run(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a launcher and forward signals to it. A second Ctrl-C kills it and its ranks.

    Returns:
        Its exit code, or 75 if a forwarded signal killed it.
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
    with forwarder.installed():
        process = start(command, env)
        for number in [*forwarder.received]:  # while the launcher was being started
            process.send_signal(number)
        code = process.wait()
    return PREEMPTED if code < 0 and forwarder.received else code


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
