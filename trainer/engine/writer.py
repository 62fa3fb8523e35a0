"""Write checkpoints. An engine whose ranks have the whole state takes a snapshot and writes it in the background.

Under a sharded engine a snapshot would be the whole state on rank zero, which no rank has otherwise. There all ranks
gather one tensor after another, while rank zero writes (`write_gathered`), and the training waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import psutil
from torch import Tensor

from trainer.engine.runtime import Runtime
from trainer.tensors import LazyTensor, Stored, compute_rest

Files = Mapping[str, Mapping[str, Stored]]
ROOM = 2.0  # times the snapshot's size must be free, so that the machine does not begin to swap


class Writer:
    """Runs one save at a time: a second one waits for the first. An error is raised at the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, files: Mapping[str, Mapping[str, Tensor]], write: Callable[[Files], None]) -> None:
        """Call `write(files)` in the background with a copy, or at once if there is no memory for a copy.

        Args:
            files: tensors by file name.
            write: writes them.

        Raises:
            CheckpointError: of the save before, or of this one if it was not put off.
        """
        self.wait()
        if not fits(files):
            write(files)
            return
        copies = {name: {k: t.detach().to("cpu", copy=True) for k, t in part.items()} for name, part in files.items()}
        self._pending = self._pool.submit(write, copies)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: of the save that was waited for.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def write_gathered(runtime: Runtime, files: Files, write: Callable[[Files], None]) -> None:
    """Call `write(files)` on rank zero, while all ranks take part in computing the lazy tensors. All ranks.

    After an error of rank zero all ranks compute the rest, so that no rank waits. It is then raised on all of them.
    """

    def compute(tensor: LazyTensor) -> Tensor:
        runtime.heartbeat("a save")
        return tensor.compute()

    def watched(tensor: Stored) -> Stored:
        if not isinstance(tensor, LazyTensor):
            return tensor
        return LazyTensor(tensor.shape, tensor.dtype, partial(compute, tensor))

    files = {file: {name: watched(tensor) for name, tensor in part.items()} for file, part in files.items()}
    error: Exception | None = None
    if runtime.main:
        try:
            write(files)
        except Exception as caught:
            error = caught
    compute_rest(files)

    def result() -> None:
        if error is not None:
            raise error

    runtime.on_main(result)


def fits(files: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether there is memory for a copy of all tensors."""
    size = sum(t.numel() * t.element_size() for part in files.values() for t in part.values())
    return bool(psutil.virtual_memory().available > ROOM * size)
