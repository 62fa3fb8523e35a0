"""Write checkpoints. An engine whose ranks have the whole state takes a snapshot and writes it in the background.

Each rank writes its share (parts.py), and its snapshot has that share only. Under a sharded engine the share is not on
the rank: all ranks exchange one tensor after another while they write, and the training waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import psutil
from torch import Tensor

from trainer.data_parallel import run_on_main
from trainer.engine.host_group import HostGroup
from trainer.engine.parts import Content, Exchange, deal
from trainer.engine.runtime import Runtime
from trainer.engine.saving import Alone, Ranks, Share
from trainer.tensors import size_of

Files = Mapping[str, Mapping[str, Tensor]]
Write = Callable[[Share, Ranks], None]
ROOM = 2.0  # times the snapshots' size must be free, so that the machine does not begin to swap


class Background(Ranks):
    """The ranks that save in the background. Its group is used by their threads alone, so that no order is mixed up."""

    def __init__(self, runtime: Runtime) -> None:
        self.main, self.rank, self._world, self._group = runtime.main, runtime.rank, runtime.world, HostGroup()

    def on_main(self, work: Callable[[], Any]) -> Any:
        return run_on_main(self.main, work, self._group.broadcast)

    def gather(self, value: Any) -> list[Any] | None:
        return self._group.gather(value, self._world, self.main)


class Writer:
    """Runs one save at a time: a second one waits for the first. An error is raised at the next call."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._background: Background | None = None

    def save(self, content: Content, alone: Files, write: Write) -> None:
        """Write the tensors of a checkpoint: at once under a sharded engine, otherwise in the background. All ranks.

        Args:
            content: tensors by file. The same names on all ranks.
            alone: files that rank zero has alone.
            write: writes the share of this rank.

        Raises:
            CheckpointError: of the save before, or of this one if it was not put off. On all ranks.
        """
        runtime = self._runtime
        layout = deal(content, runtime.world)
        indexes = layout.indexes(content) if runtime.main else {}
        self.wait()
        if runtime.engine.spec.sharded:
            exchange = Exchange(runtime, content, layout)
            write(Share({**exchange.own, **alone}, indexes, exchange.finish), runtime)
            return
        own: Files = {**layout.own(runtime.rank, cast("Files", content)), **alone}
        if layout.alone:
            runtime.on_main(lambda: self._submit(own, lambda files: write(Share(files, indexes), Alone()), fits(own)))
            return
        if self._background is None:
            self._background = Background(runtime)
        ranks, copies = self._background, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        room = runtime.sum([int(fits(own, copies))])[0] == runtime.world
        self._submit(own, lambda files: write(Share(files, indexes), ranks), room)

    def _submit(self, files: Files, write: Callable[[Files], None], room: bool) -> None:
        """Call `write(files)` in the background with a copy, or at once if there is no room for a copy."""
        if not room:
            write(files)
            return
        copies = {name: {k: t.detach().to("cpu", copy=True) for k, t in part.items()} for name, part in files.items()}
        self._pending = self._pool.submit(write, copies)

    def wait(self) -> None:
        """Wait until nothing is being written. All ranks.

        Raises:
            CheckpointError: of the save that was waited for.
        """
        self._runtime.on_main(self.wait_for_own)
        self.wait_for_own()

    def wait_for_own(self) -> None:
        """Wait until this rank writes nothing. Raises as `wait`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def fits(files: Files, copies: int = 1) -> bool:
    """Whether this machine has memory for copies of files of this size."""
    size = sum(size_of(tensor) for part in files.values() for tensor in part.values())
    return bool(psutil.virtual_memory().available > ROOM * size * copies)
