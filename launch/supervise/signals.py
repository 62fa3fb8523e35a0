"""Forward signals to started processes, and end with the process that started this one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PARENT = "RANKZERO_PARENT"  # variable with the process id of the launcher's or the rank's parent
_PR_SET_PDEATHSIG = 1


class SignalForwarder:
    """A signal handler that forwards each kind of signal once.

    Attributes:
        received: time of the first signal of each kind, by the monotonic clock.
    """

    def __init__(self, forward: Callable[[int], None], repeated: Callable[[int, float], None] | None = None) -> None:
        """Take functions for the first signal of a kind, and for later ones with the seconds since the first."""
        self.received: dict[int, float] = {}
        self._forward, self._repeated = forward, repeated

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        now = time.monotonic()
        if number not in self.received:
            self.received[number] = now
            self._forward(number)
        elif self._repeated:
            self._repeated(number, now - self.received[number])

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the forwarded signals, and SIGHUP unless `nohup` has it ignored. Restore the handlers afterwards."""
        hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        old = {number: signal.signal(number, self) for number in (*FORWARDED, *hangup)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def end_with_parent(number: int) -> None:
    """Let the kernel send signal `number` to this process when the process of RANKZERO_PARENT dies. Linux only."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the call above
        os.kill(os.getpid(), number)
