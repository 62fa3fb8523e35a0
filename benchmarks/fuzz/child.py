"""Forked processes for cases. The modules that cases need are imported before the fork."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

WAIT_SECONDS = 60.0  # of wall time, after which the child is killed: it waits for something, or this machine is slow
Answer = dict[str, Any]  # "problem" is an empty text where nothing is wrong


def answers(calls: Sequence[Callable[[], Answer]]) -> Iterator[Answer]:
    """Fork, and yield what functions return in the child, one after the other, up to the first problem.

    A child that ends or takes too long has a problem, and "died" is true.
    """
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(calls, there)
    os.close(there)
    try:
        yield from _received(here, pid, len(calls))
    finally:
        os.close(here)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # processes that it left, and itself
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _received(here: int, pid: int, count: int) -> Iterator[Answer]:
    text = b""
    for _ in range(count):
        text, late = _read(here, text)
        line, end, text = text.partition(b"\n")
        if not end:
            if late:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            how = f"more than {WAIT_SECONDS:g} s" if late else f"signal {-code}" if code < 0 else f"code {code}"
            yield {"problem": f"its process died: {how}", "died": True}
            return
        answer = json.loads(line)
        yield answer
        if answer["problem"]:
            return


def _answer(calls: Sequence[Callable[[], Answer]], there: int) -> None:
    """Write the answers and end the process, whatever happens."""
    code = 97
    try:
        os.setpgid(0, 0)
        for call in calls:
            answer = call()
            text = json.dumps(answer).encode() + b"\n"
            while text:
                text = text[os.write(there, text) :]
            if answer["problem"]:
                break
        code = 0
    finally:
        os._exit(code)


def _read(pipe: int, text: bytes) -> tuple[bytes, bool]:
    """Return what the child writes, up to a line end, and whether it took too long."""
    until = time.monotonic() + WAIT_SECONDS
    while b"\n" not in text:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return text, True
        if not (more := os.read(pipe, 1 << 16)):
            break
        text += more
    return text, False
