"""What a lane's micro-batch leaves for the lane's next one: the memory of a recurrent model.

It belongs to the lane as the bookmark does, and is saved beside it, so that it is the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainer.data.loader import Loaded
from trainer.engine.runtime import Runtime
from trainer.errors import CheckpointError
from trainer.tasks.base import Batch, Task

FILE = "lanes.safetensors"  # in a checkpoint: by lane, where a task carries something


class Carried:
    """The memories (rows, …) of the lanes that this rank owns; nothing for a task without (`Task.memory`)."""

    def __init__(self, runtime: Runtime, task: Task) -> None:
        self._runtime, self._task = runtime, task
        self._lanes: dict[int, Tensor] = {}
        self._left: list[tuple[Loaded, list[Tensor]]] = []

    def given(self, loaded: Loaded) -> Batch:
        """The inputs of a micro-batch, and as `memory` what the last one of each of its lanes has left."""
        if self._task.memory(1) is None:
            return loaded.inputs
        found = [self._of(lane, rows) for lane, rows in loaded.sequences.items()]
        return {**loaded.inputs, "memory": torch.cat(found)}

    def _of(self, lane: int, rows: int) -> Tensor:
        """Of a lane, for so many rows: rows beyond those of its last micro-batch begin anew."""
        blank = self._task.memory(rows)
        assert blank is not None
        blank, before = blank.to(self._runtime.device), self._lanes.get(lane)
        return blank if before is None else torch.cat([before[:rows], blank[len(before) :].to(before.dtype)])

    def begin(self) -> None:
        """Before the first forward of a step, also where a step is begun again."""
        self._left.clear()

    def leave(self, loaded: Loaded, memory: Tensor | None) -> None:
        """After a forward: what the next micro-batch of these lanes will be given; the parts of one in their order."""
        if memory is None:
            return
        if not self._left or self._left[-1][0] is not loaded:
            self._left.append((loaded, []))
        self._left[-1][1].append(memory.detach())

    def keep(self) -> None:
        """After a step that was made: from now on the next micro-batches are given what these have left."""
        for loaded, parts in self._left:
            memories = torch.cat(parts).split(list(loaded.sequences.values()))
            self._lanes |= dict(zip(loaded.sequences, (m.clone() for m in memories), strict=True))
        self._left.clear()

    def forget(self) -> None:
        """After a step that was skipped for NaN or Inf: all lanes begin anew, rather than with what it has left."""
        self._lanes.clear()
        self._left.clear()

    def collect(self) -> dict[str, Tensor]:
        """Memories by lane, of all ranks on rank zero. All ranks enter."""
        if self._task.memory(1) is None:
            return {}
        parts = self._runtime.gather({str(lane): memory.cpu() for lane, memory in self._lanes.items()})
        return {lane: memory for part in parts or [] for lane, memory in part.items()}

    def restore(self, saved: Mapping[str, Tensor], lanes: Iterable[int]) -> None:
        """Takes those of its own lanes out of a checkpoint's.

        Raises:
            CheckpointError: they are of another size than this recipe's.
        """
        blank = self._task.memory(1)
        assert blank is not None
        for lane, memory in saved.items():
            if memory.shape[1:] != blank.shape[1:]:
                raise CheckpointError(
                    f"{FILE}: lane {lane} has a memory of {tuple(memory.shape[1:])}, the recipe's model of "
                    f"{tuple(blank.shape[1:])}: go on with the same model.memory and sizes"
                )
        self._lanes = {lane: saved[str(lane)].to(self._runtime.device) for lane in lanes if str(lane) in saved}
