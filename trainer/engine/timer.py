"""Time between evaluations or checkpoints that a recipe counts in minutes."""

from __future__ import annotations

import time

from trainer.recipe.loop_sections import seconds_of


class Timer:
    """Says when something is due that a recipe wants every so many minutes."""

    def __init__(self, every: int | str) -> None:
        self._seconds, self._began = seconds_of(every), time.monotonic()

    def due(self) -> bool:
        """Return whether the time has passed. False if it is counted in steps or epochs."""
        return self._seconds is not None and time.monotonic() - self._began >= self._seconds

    def restart(self) -> None:
        self._began = time.monotonic()
