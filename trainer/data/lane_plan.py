"""The settings of lanes, and the position of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.data.counter_rng import key


@dataclass(frozen=True)
class LanePlan:
    """The settings that determine the micro-batches of all lanes."""

    seed: int
    lanes: int
    block_rows: int  # rows of a lane that are in memory, permuted and cut together
    tokens: int | None  # padded tokens of a micro-batch, at most
    rows: int | None  # rows of a micro-batch, at most
    multiple: int = 1  # lengths are padded to a multiple of this
    shuffled: bool = True
    narrowest: int = 1  # the smallest width, a multiple of `multiple`

    def edge_after(self, start: int, epoch: int) -> int:
        """Return the end of the block that begins at row `start` of a lane. Boundaries move every epoch."""
        shift = key(self.seed, epoch, "shift") % self.block_rows if self.shuffled else 0
        return (start + shift) // self.block_rows * self.block_rows + self.block_rows - shift

    def width(self, length: int) -> int:
        """Return the padded width of a sequence."""
        return max(self.narrowest, -(-length // self.multiple) * self.multiple)


@dataclass(frozen=True)
class Bookmark:
    """The position of a lane: a few integers, and the stream's position at the start of the block."""

    epoch: int = 0
    start: int = 0  # first row (of the lane's rows) of the block
    first_step: int = 0  # step of the epoch at which the block began to be served
    served: int = 0  # micro-batches of the block already served
    position: Any = None  # of the stream at `start`; None is the beginning. A mapping for the streams of a mixture

    @property
    def begun(self) -> bool:
        """Whether a micro-batch of the epoch was served."""
        return self.start > 0 or self.served > 0

    def next_epoch(self, epoch: int) -> Bookmark:
        """Return the beginning of an epoch. The corpora of a mixture are read on from where they are."""
        return Bookmark(epoch, position=self.position if isinstance(self.position, dict) else None)
