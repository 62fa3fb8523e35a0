"""Out of memory in a micro-batch: what it looks like, and how micro-batches are split so that they fit."""

from __future__ import annotations

from torch import OutOfMemoryError

_SAYS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def ran_out(error: BaseException) -> bool:
    """Whether this is how torch, an engine or Python says that memory ran out."""
    known = isinstance(error, OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS))
