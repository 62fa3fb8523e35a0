"""The errors that users see, each with the exit code of the command.

0 done · 1 a rank died · 2 usage or recipe · 3 data · 4 checkpoint · 5 numerics · 6 an artifact failed its gate ·
75 stopped early, can resume. A message names the key, file, row or rank, the value, what is allowed, and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.redaction import redacted


class RankzeroError(ValueError):
    """An error that the user can act on. Any other exception is a bug and keeps its traceback."""

    exit_code = 1
    everywhere = False  # raised on all ranks: only rank zero reports it

    def __init__(self, message: str) -> None:
        """Store the message without credentials. It is printed and written to status.json."""
        super().__init__(redacted(message))


class RankError(RankzeroError):
    """A rank died, or the engine or number of ranks is not the requested one."""

    exit_code = 1


class UsageError(RankzeroError):
    """Wrong command line or recipe.

    Attributes:
        problems: of a recipe, one by one, each "key: text"; the message has them all.
    """

    exit_code = 2
    everywhere = True

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(redacted(problem) for problem in problems)


class DataError(RankzeroError):
    """Missing, empty or bad data."""

    exit_code = 3


class StoreError(RankzeroError):
    """A remote store has not answered for too long. The same command may succeed later."""

    exit_code = 1


class CheckpointError(RankzeroError):
    """A checkpoint cannot be written, or no complete one can be read."""

    exit_code = 4


class NumericsError(RankzeroError):
    """NaN or Inf in loss, gradient or weights."""

    exit_code = 5
    everywhere = True


class GateError(RankzeroError):
    """An artifact failed its gate and was not published."""

    exit_code = 6


class OutOfMemory(RankzeroError):
    """A rank ran out of memory. The same command resumes with every micro-batch split into `splits` parts.

    Attributes:
        fuse_lanes: what is known to fit if that was measured (`loop.fuse_lanes: auto`), as in the manifest.
    """

    exit_code = 75

    def __init__(self, message: str, splits: int, fuse_lanes: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.splits, self.fuse_lanes = splits, fuse_lanes


class Preempted(RankzeroError):
    """Stopped by a signal, with everything saved. The same command resumes."""

    exit_code = 75
    everywhere = True


class LockLost(RankzeroError):
    """Another process has taken over the run directory. This one writes nothing more and ends."""

    exit_code = 75
    everywhere = True


# Errors that a value of another type or form in a file of a run may lead to.
OF_FORM = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has failed, such as `tokenizers`. Its error is no `Exception`."""
    return type(error).__name__ == "PanicException"


def hide_credentials(error: BaseException) -> None:
    """Take credentials out of an error of a library and out of its causes, which a traceback shows."""
    if str(error) != redacted(str(error)):
        error.args = tuple(redacted(arg) for arg in error.args)
    cause = error.__cause__ or error.__context__
    if cause is None:
        return
    if str(cause) != redacted(str(cause)):
        error.__cause__ = error.__context__ = None
    else:
        hide_credentials(cause)


_NO_MEMORY = ("out of memory", "DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch, an engine or Python reports that memory ran out. Needs no torch, whose error is known by name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _NO_MEMORY)
