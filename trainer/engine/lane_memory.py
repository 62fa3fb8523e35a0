"""What a lane's micro-batch leaves for the lane's next one: the memory of a recurrent model.

It belongs to the lane as the bookmark does, and is saved beside it, so that it is the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trainer.data.loader import Loaded
from trainer.engine.runtime import Runtime
from trainer.errors import CheckpointError
from trainer.task.base import Batch, Task

FILE = "lanes.safetensors"  # in a checkpoint: by lane, where a task carries something


class LaneMemory:
    """The memories (rows, …) of the lanes that this rank owns; nothing for a task without (`Task.memory`)."""

    def __init__(self, runtime: Runtime, task: Task) -> None:
        self._runtime, self._task = runtime, task
        self._blank = task.memory(1)
        self._lanes: dict[int, Tensor] = {}
        self._left: list[tuple[Loaded, list[Tensor]]] = []

    @property
    def anything(self) -> bool:
        """Whether the task carries something."""
        return self._blank is not None

    def given(self, loaded: Loaded) -> Batch:
        """The inputs of a micro-batch, and as `memory` what the last one of each of its lanes has left."""
        if not self.anything:
            return loaded.inputs
        return {**loaded.inputs, "memory": _joined([self._of(lane, n) for lane, n in loaded.sequences.items()])}

    def _of(self, lane: int, rows: int) -> Tensor:
        """Of a lane, for so many rows: rows beyond those of its last micro-batch begin anew."""
        before = self._lanes.get(lane)
        if before is not None and len(before) >= rows:
            return before[:rows]
        blank = self._task.memory(rows if before is None else rows - len(before))
        assert blank is not None
        blank = blank.to(self._runtime.device)
        return blank if before is None else torch.cat([before, blank.to(before.dtype)])

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
            memory = _joined(parts)
            apart = memory.split(list(loaded.sequences.values()))
            # views of one tensor could not be saved: safetensors wants each to have its own memory
            own = [memory] if len(apart) == 1 else [rows.clone() for rows in apart]
            self._lanes |= dict(zip(loaded.sequences, own, strict=True))
        self._left.clear()

    def forget(self) -> None:
        """After a step that was skipped for NaN or Inf: all lanes begin anew, rather than with what it has left."""
        self._lanes.clear()
        self._left.clear()

    def collect(self) -> dict[str, Tensor]:
        """Memories by lane, of all ranks on rank zero. All ranks enter."""
        if not self.anything:
            return {}
        parts = self._runtime.gather({str(lane): memory.cpu() for lane, memory in self._lanes.items()})
        return {lane: memory for part in parts or [] for lane, memory in part.items()}

    def restore(self, saved: Mapping[str, Tensor], lanes: Iterable[int]) -> None:
        """Takes those of its own lanes out of a checkpoint's.

        Raises:
            CheckpointError: they are of another size than this recipe's.
        """
        assert self._blank is not None
        for lane, memory in saved.items():
            if memory.shape[1:] != self._blank.shape[1:]:
                raise CheckpointError(
                    f"{FILE}: lane {lane} has a memory of {tuple(memory.shape[1:])}, the recipe's model of "
                    f"{tuple(self._blank.shape[1:])}: go on with the same model.memory and sizes"
                )
        self._lanes = {lane: saved[str(lane)].to(self._runtime.device) for lane in lanes if str(lane) in saved}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another, without a copy of one alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
