"""Deal the rows of a corpus to lanes."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trainer.data.counter_rng import key, mix, permutation
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.recipe.sections import DataConfig

DRAWN = 2**17  # places whose lanes are drawn at once, at most: 4 MB for any number of lanes


class RowSource(Protocol):
    """One split of a corpus (`trainer.data.sources.Source`). A stream is an iterator of rows with a `state()`."""

    shards: Sequence[Any]

    def stream(self, shard: int, state: Any = None) -> Any: ...


class Dealer:
    """Deals the rows of one epoch to some lanes. The stream is opened once for all of them.

    Of each group of L consecutive rows one goes to each lane, in an order keyed by (seed, epoch, group). Row i does not
    go to lane i mod L, because real corpora have periods. With `whole_shards` there is one dealer per lane, and all
    rows of its shards go to that lane.
    """

    def __init__(
        self, source: RowSource, plan: LanePlan, epoch: int, lanes: Sequence[int], whole_shards: bool, begin: Bookmark
    ) -> None:
        self._source, self._plan, self._epoch = source, plan, epoch
        self._shards = self._shard_order(lanes, whole_shards)
        self._group_size = 1 if whole_shards else plan.lanes
        self._waiting: dict[int, deque[tuple[int, Any]]] = {lane: deque() for lane in lanes}
        self._lane_of_all = lanes[0] if whole_shards else None
        self._orders: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.reached = begin.start  # rows of each lane that were read
        self._edge = plan.edge_after(begin.start, epoch)
        self._positions = {begin.start: begin.position}
        self._kept = 0
        at, state = begin.position or (0, None)
        self._at = at
        self._stream = source.stream(self._shards[at], state) if at < len(self._shards) else None

    def take(self, lane: int, start: int, end: int) -> list[Any]:
        """Return rows `start` … `end` - 1 of a lane's rows, fewer at the end of the corpus."""
        return [row for _, row in self.numbered(lane, start, end)]

    def numbered(self, lane: int, start: int, end: int) -> list[tuple[int, Any]]:
        """Return the rows of `take` with their numbers."""
        while self.reached < end and self._read_group():
            pass
        rows, waiting = [], self._waiting[lane]
        while waiting and waiting[0][0] < end:
            number, row = waiting.popleft()
            if number >= start:
                rows.append((number, row))
        return rows

    def position(self, start: int) -> Any:
        """Return the position of the stream at a block's start."""
        return self._positions.get(start, (len(self._shards), None))  # without one: past the end of the corpus

    def position_before(self, row: int) -> tuple[int, Any]:
        """Return the last row up to `row` whose position is known, and the position of the stream there."""
        start = next(start for start in reversed(self._positions) if start <= row)
        return start, self._positions[start]

    @property
    def crowded(self) -> bool:
        """Whether there are many more positions than after the last `forget_before`."""
        return len(self._positions) > 2 * self._kept + 64

    def forget_before(self, row: int) -> None:
        """Drop the positions before the last one up to `row`."""
        first = self.position_before(row)[0]
        self._positions = {start: position for start, position in self._positions.items() if start >= first}
        self._kept = len(self._positions)

    def ended(self, start: int) -> bool:
        """Return whether the corpus has no row of number `start` or later for any lane."""
        while self.reached <= start and self._read_group():
            pass
        return self._stream is None and self.reached <= start

    def _shard_order(self, lanes: Sequence[int], whole_shards: bool) -> list[int]:
        number = len(self._source.shards)
        order = list(range(number))
        if self._plan.shuffled:
            order = [int(i) for i in permutation(number, self._plan.seed, self._epoch, "shards")]
        return order[lanes[0] :: self._plan.lanes] if whole_shards else order

    def _read_group(self) -> bool:
        """Deal one more group. Return False at the end of the corpus."""
        dealt = 0
        while dealt < self._group_size and self._stream is not None:
            row = next(self._stream, None)
            if row is None:
                self._at += 1
                more = self._at < len(self._shards)
                self._stream = self._source.stream(self._shards[self._at]) if more else None
                continue
            lane = self._lane_of_all if self._lane_of_all is not None else self._lane(dealt)
            if lane in self._waiting:
                self._waiting[lane].append((self.reached, row))
            dealt += 1
        if not dealt:
            return False
        self.reached += 1
        if self.reached == self._edge:
            self._edge = self._plan.edge_after(self._edge, self._epoch)
            self._positions[self.reached] = (self._at, self._stream.state() if self._stream is not None else None)
        return True

    def _lane(self, place: int) -> int:
        """Return the lane of the row at `place` of the current group. Orders are drawn for many groups at once."""
        size = self._plan.lanes
        groups = max(1, min(512, DRAWN // size))
        chunk, within = divmod(self.reached, groups)
        if self._orders[0] != chunk:
            counter = np.arange(chunk * groups * size, (chunk + 1) * groups * size, dtype=np.uint64)
            with np.errstate(over="ignore"):
                drawn = mix(counter + np.uint64(key(self._plan.seed, self._epoch, "deal")))
            order = np.argsort(drawn.reshape(groups, size), axis=1, kind="stable")
            if not self._plan.shuffled:
                order = np.broadcast_to(np.arange(size), (groups, size))
            self._orders = (chunk, order)
        return int(self._orders[1][within, place])


def deals_whole_shards(source: RowSource, plan: LanePlan | DataConfig) -> bool:
    """Whether whole shards are dealt to lanes: every lane gets at least one, and about as many bytes as the others.

    The sum for each lane matters, not the size of one shard. Shards of unknown size count as equal, so their number
    must be a multiple of the lanes. The same holds for prepared shards, to which rows were dealt in turn.
    """
    shards = source.shards
    if len(shards) < plan.lanes:
        return False
    sizes = [shard.size for shard in shards]
    if any(size is None for size in sizes) or shards[0].format == "prepared":
        return len(shards) % plan.lanes == 0
    known = sorted(size for size in sizes if size is not None)
    smallest = sum(known[: len(known) // plan.lanes])
    largest = sum(heapq.nlargest(-(-len(known) // plan.lanes), known))
    return smallest > 0 and largest <= 1.1 * smallest
