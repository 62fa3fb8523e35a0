"""A callback that leaks, for the test of benchmarks/soak."""

import tempfile
from typing import Any

from trainer import Callback


class Leak(Callback):
    """Opens a temporary file after each step, and never closes it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._files: list[Any] = []

    def on_step(self, step: int, values: Any) -> None:
        self._files.append(tempfile.mkstemp())
