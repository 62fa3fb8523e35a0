"""Out of memory in a micro-batch: what it looks like, and how micro-batches are split so that they fit."""

from __future__ import annotations

from torch import OutOfMemoryError

from trainer.tasks.base import Batch

_SAYS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def ran_out(error: BaseException) -> bool:
    """Whether this is how torch, an engine or Python says that memory ran out."""
    known = isinstance(error, OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS))


def split(batch: Batch, parts: int) -> list[Batch | None]:
    """The rows of a micro-batch in `parts` micro-batches of nearly the same size; None where there are too few rows."""
    pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    found = [{name: tensors[i] for name, tensors in pieces.items()} for i in range(parts)]
    return [part if len(next(iter(part.values()))) else None for part in found]
