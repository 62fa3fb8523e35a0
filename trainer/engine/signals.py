"""Signals set a flag only: saving inside a handler would stall. Ranks agree in the loop (docs/explanation/steps.md)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopFlag:
    """Which stop signal this process has received, if any."""

    def __init__(self) -> None:
        self.received: str | None = None

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Install the handlers for the stopping signals, and put the old ones back afterwards.

        SIGHUP stays ignored below `nohup`.

        Outside the main thread (a notebook's worker, say) Python allows no handlers: the flag is then never set.
        """
        try:
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            numbers = [number for number in STOPPING if not (number == signal.SIGHUP and ignored)]
            old = {number: signal.signal(number, self._set) for number in numbers}
        except ValueError:
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
