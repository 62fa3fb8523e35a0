"""A forked child for each case, with limits of its own. The modules that it needs are imported before the fork."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WAIT_SECONDS = 60.0  # of wall time, after which the child is killed: it waits for something, or this machine is slow


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        answer: what its function returned, or None if it died.
        how: "code 3", "signal 9", or "" if it answered.
        seconds: of CPU time, of the child and its own children.
    """

    answer: dict[str, Any] | None
    how: str
    seconds: float


def in_child(call: Callable[[], dict[str, Any]]) -> Ended:
    """Fork, and return what a function returns in the child: JSON."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(call, there)
    os.close(there)
    text, late = _read(here)
    os.close(here)
    if late:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # processes that it left
        os.killpg(pid, signal.SIGKILL)
    seconds = used.ru_utime + used.ru_stime
    if text.endswith(b"\n"):
        return Ended(json.loads(text), "", seconds)
    code = os.waitstatus_to_exitcode(status)
    how = f"more than {WAIT_SECONDS:g} s" if late else f"signal {-code}" if code < 0 else f"code {code}"
    return Ended(None, how, seconds)


def _answer(call: Callable[[], dict[str, Any]], there: int) -> None:
    """Write the answer and end the process, whatever happens."""
    code = 97
    try:
        os.setpgid(0, 0)
        text = json.dumps(call()).encode() + b"\n"
        while text:
            text = text[os.write(there, text) :]
        code = 0
    finally:
        os._exit(code)


def _read(pipe: int) -> tuple[bytes, bool]:
    """Return what the child writes, up to a line end, and whether it took too long."""
    text, until = b"", time.monotonic() + WAIT_SECONDS
    while not text.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return text, True
        if not (more := os.read(pipe, 1 << 16)):
            break
        text += more
    return text, False
