"""The memory of a recurrent model: what a lane's micro-batch passes on to the lane's next one.

It belongs to the lane, as the bookmark does, and is saved with it. So it is the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trainer.data.loader import Loaded
from trainer.engine.runtime import Runtime
from trainer.errors import CheckpointError
from trainer.task.base import Batch, Task

FILE = "lanes.safetensors"  # in a checkpoint: memories by lane, for tasks that have a memory


class LaneMemory:
    """The memories (rows, …) of the lanes that this rank owns. Empty for a task without memory (`Task.memory`)."""

    def __init__(self, runtime: Runtime, task: Task) -> None:
        self._runtime, self._task = runtime, task
        self._blank = task.memory(1)
        self._lanes: dict[int, Tensor] = {}
        self._pending: list[tuple[Loaded, list[Tensor]]] = []

    @property
    def enabled(self) -> bool:
        """Whether the task has a memory."""
        return self._blank is not None

    def inputs(self, loaded: Loaded) -> Batch:
        """Return the inputs of a micro-batch with the memory of its lanes."""
        if not self.enabled:
            return loaded.inputs
        return {**loaded.inputs, "memory": _concat([self._of(lane, n) for lane, n in loaded.sequences.items()])}

    def _of(self, lane: int, rows: int) -> Tensor:
        """Return a lane's memory for `rows` rows. Rows beyond those of its last micro-batch get a blank memory."""
        memory = self._lanes.get(lane)
        if memory is not None and len(memory) >= rows:
            return memory[:rows]
        blank = self._task.memory(rows if memory is None else rows - len(memory))
        assert blank is not None
        blank = blank.to(self._runtime.device)
        return blank if memory is None else torch.cat([memory, blank.to(memory.dtype)])

    def start_step(self) -> None:
        """Drop what an earlier attempt at this step has added."""
        self._pending.clear()

    def add(self, loaded: Loaded, memory: Tensor | None) -> None:
        """Add the memory after a forward. Parts of one micro-batch are added in their order."""
        if memory is None:
            return
        if not self._pending or self._pending[-1][0] is not loaded:
            self._pending.append((loaded, []))
        self._pending[-1][1].append(memory.detach())

    def commit(self) -> None:
        """Pass what was added in this step on to the next one, after the update."""
        for loaded, parts in self._pending:
            memory = _concat(parts)
            by_lane = memory.split(list(loaded.sequences.values()))
            # views of one tensor could not be saved: safetensors needs separate storage for each
            own = [memory] if len(by_lane) == 1 else [rows.clone() for rows in by_lane]
            self._lanes |= dict(zip(loaded.sequences, own, strict=True))
        self._pending.clear()

    def reset(self) -> None:
        """Give all lanes a blank memory, after a step that was skipped for NaN or Inf."""
        self._lanes.clear()
        self._pending.clear()

    def collect(self) -> dict[str, Tensor]:
        """Return the memories of all ranks by lane, on rank zero. All ranks."""
        if not self.enabled:
            return {}
        gathered = self._runtime.gather({str(lane): memory.cpu() for lane, memory in self._lanes.items()})
        return {lane: memory for rank in gathered or [] for lane, memory in rank.items()}

    def restore(self, saved: Mapping[str, Tensor], lanes: Iterable[int]) -> None:
        """Restore the memories of this rank's lanes from a checkpoint.

        Raises:
            CheckpointError: their size differs from this recipe's.
        """
        assert self._blank is not None
        for lane, memory in saved.items():
            if memory.shape[1:] != self._blank.shape[1:]:
                raise CheckpointError(
                    f"{FILE}: lane {lane} has a memory of {tuple(memory.shape[1:])}, the recipe's model of "
                    f"{tuple(self._blank.shape[1:])}: resume with the same model.memory and sizes"
                )
        self._lanes = {lane: saved[str(lane)].to(self._runtime.device) for lane in lanes if str(lane) in saved}


def _concat(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along rows. One part alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
