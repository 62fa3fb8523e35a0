"""The errors a user can meet, each with the exit code that the command ends with.

0 done · 1 a rank died · 2 usage or recipe · 3 data · 4 checkpoint · 5 numerics · 6 an artifact failed its gate ·
75 stopped early and can go on. A message names the key, file, row or rank, the value, what is allowed, and the fix.
"""

from __future__ import annotations

from trainer.redaction import redacted


class RankzeroError(ValueError):
    """A mistake or misfortune that the user can act on; anything else is our own bug and keeps its traceback."""

    exit_code = 1
    everywhere = False  # raised on all ranks alike: one of them speaks

    def __init__(self, message: str) -> None:
        """`message`: printed, and stored in status.json, without credentials."""
        super().__init__(redacted(message))


class RankError(RankzeroError):
    """A rank died, or the engine or number of ranks that runs is not the one that was asked for."""

    exit_code = 1


class UsageError(RankzeroError):
    """Wrong command line or recipe."""

    exit_code = 2
    everywhere = True


class DataError(RankzeroError):
    """Missing, empty or bad data."""

    exit_code = 3


class CheckpointError(RankzeroError):
    """A checkpoint cannot be written, or none that is whole can be read."""

    exit_code = 4


class NumericsError(RankzeroError):
    """NaN or Inf in loss, gradient or weights."""

    exit_code = 5
    everywhere = True


class GateError(RankzeroError):
    """An artifact failed its gate and was not published."""

    exit_code = 6


class OutOfMemory(RankzeroError):
    """A rank ran out of memory in a micro-batch; the same command goes on with every micro-batch in `splits` parts."""

    exit_code = 75

    def __init__(self, message: str, splits: int) -> None:
        super().__init__(message)
        self.splits = splits


class Preempted(RankzeroError):
    """Asked to stop (signal): everything is saved and the same command goes on from here."""

    exit_code = 75
    everywhere = True


class LockLost(RankzeroError):
    """The run directory was taken over by another process: this one writes nothing more and leaves."""

    exit_code = 75
    everywhere = True
