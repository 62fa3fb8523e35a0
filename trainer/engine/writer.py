"""Write checkpoints in the background: rank zero takes a snapshot, and a thread hashes, writes and commits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
from torch import Tensor

Files = Mapping[str, Mapping[str, Tensor]]
ROOM = 2.0  # times the snapshot's size must be free, so that the machine does not begin to swap


class Writer:
    """Runs one save at a time: a second one waits for the first. An error is raised at the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, files: Files, write: Callable[[Files], None], *, owned: bool = False) -> None:
        """Call `write(files)` in the background with a copy, or at once if there is no memory for a copy.

        Args:
            files: tensors by file name.
            write: writes them.
            owned: the tensors do not change, so that no copy is needed.

        Raises:
            CheckpointError: of the save before, or of this one if it was not put off.
        """
        self.wait()
        if not owned:
            if not fits(files):
                write(files)
                return
            files = {
                name: {k: t.detach().to("cpu", copy=True) for k, t in part.items()} for name, part in files.items()
            }
        self._pending = self._pool.submit(write, files)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: of the save that was waited for.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def fits(files: Files) -> bool:
    """Whether there is memory for a copy of all tensors."""
    size = sum(t.numel() * t.element_size() for part in files.values() for t in part.values())
    return bool(psutil.virtual_memory().available > ROOM * size)
