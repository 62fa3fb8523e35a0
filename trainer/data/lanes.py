"""Lanes: what an optimizer step contains is fixed by the recipe alone, never by ranks, workers or restarts.

A corpus is dealt to L lanes. A lane is a deterministic source of micro-batches, each of which carries the bookmark that
follows it. Rank r of W owns lanes r, r+W, …; one optimizer step is one micro-batch of every lane. All randomness comes
from `key(seed, epoch, …)`: nothing has a state that would have to be saved. See docs/explanation/lanes.md.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trainer.data.counter_rng import key, mix, permutation, uniform

log = logging.getLogger("rankzero")

POOL = 50  # micro-batches' worth of rows sorted by length together: company changes from epoch to epoch
DRAWN = 2**17  # places whose lanes are drawn at once, at most: 4 MB however many lanes there are
LABEL_DRIFT = 0.10  # a block whose label shares differ by more than this (and chance) from those before is badly mixed
Example = dict[str, list[int]]
RowId = tuple[int, int]
Item = tuple[list[RowId], Example, int]  # a sequence: the rows that begin in it, and its padded-token length


class RowStream(Protocol):
    """Rows of one shard from a position on (`trainer.data.sources.ShardStream`)."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def state(self) -> Any: ...


class RowSource(Protocol):
    """One split of a corpus (`trainer.data.sources.Source`)."""

    shards: Sequence[Any]

    def stream(self, shard: int, state: Any = None) -> RowStream: ...


# -- plan and bookmark -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanePlan:
    """What fixes the micro-batches of all lanes."""

    seed: int
    lanes: int
    block_rows: int  # rows of a lane that are held, permuted and cut together
    tokens: int | None  # padded tokens of a micro-batch, at most
    rows: int | None  # rows of a micro-batch, at most
    multiple: int = 1  # lengths are padded to a multiple of this
    shuffled: bool = True
    narrowest: int = 1  # the least width, a multiple of `multiple`

    def edge_after(self, start: int, epoch: int) -> int:
        """End of the block that begins at row `start` of a lane; boundaries move every epoch."""
        shift = key(self.seed, epoch, "shift") % self.block_rows if self.shuffled else 0
        return (start + shift) // self.block_rows * self.block_rows + self.block_rows - shift

    def width(self, length: int) -> int:
        return max(self.narrowest, -(-length // self.multiple) * self.multiple)


@dataclass(frozen=True)
class Bookmark:
    """Where a lane goes on: a few integers and the stream's position at the start of the block."""

    epoch: int = 0
    start: int = 0  # first row (of the lane's rows) of the block
    first_step: int = 0  # step of the epoch at which the block began to be served
    served: int = 0  # micro-batches of the block already served
    position: Any = None  # of the stream at `start`; None = the beginning


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one lane (of several, if fused) at one step, with the bookmark that follows."""

    lane: int
    ids: list[RowId]  # rows that begin in it: each row once an epoch, however many sequences it fills
    examples: list[Example]
    bookmark: Bookmark


# -- dealing -----------------------------------------------------------------------------------------------------------


class Dealer:
    """Rows of some lanes in one epoch. The stream is opened once however many lanes it serves.

    Every group of L consecutive rows gives one row to each lane, in an order keyed by (seed, epoch, group): not "row i
    to lane i mod L", because real corpora have periods. With `whole_shards` (one dealer per lane) all rows are its own.
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
        self._group = begin.start
        self._edge = plan.edge_after(begin.start, epoch)
        self._positions = {begin.start: begin.position}
        at, state = begin.position or (0, None)
        self._at = at
        self._stream = source.stream(self._shards[at], state) if at < len(self._shards) else None

    def take(self, lane: int, start: int, end: int) -> list[Any]:
        """Rows `start` … `end` - 1 of a lane's rows, fewer at the end of the corpus."""
        while self._group < end and self._read_group():
            pass
        rows, waiting = [], self._waiting[lane]
        while waiting and waiting[0][0] < end:
            number, row = waiting.popleft()
            if number >= start:
                rows.append(row)
        return rows

    def position(self, start: int) -> Any:
        """Of the stream at a block's start."""
        return self._positions.get(start, (len(self._shards), None))  # no edge there: past the end of the corpus

    def ended(self, start: int) -> bool:
        """Whether the corpus has no row of number `start` or later for any lane."""
        while self._group <= start and self._read_group():
            pass
        return self._stream is None and self._group <= start

    def _shard_order(self, lanes: Sequence[int], whole_shards: bool) -> list[int]:
        number = len(self._source.shards)
        order = list(range(number))
        if self._plan.shuffled:
            order = [int(i) for i in permutation(number, self._plan.seed, self._epoch, "shards")]
        return order[lanes[0] :: self._plan.lanes] if whole_shards else order

    def _read_group(self) -> bool:
        """Deals one more group; False at the end of the corpus."""
        found = 0
        while found < self._group_size and self._stream is not None:
            row = next(self._stream, None)
            if row is None:
                self._at += 1
                more = self._at < len(self._shards)
                self._stream = self._source.stream(self._shards[self._at]) if more else None
                continue
            lane = self._lane_of_all if self._lane_of_all is not None else self._lane(found)
            if lane in self._waiting:
                self._waiting[lane].append((self._group, row))
            found += 1
        if not found:
            return False
        self._group += 1
        if self._group == self._edge:
            self._edge = self._plan.edge_after(self._edge, self._epoch)
            self._positions[self._group] = (self._at, self._stream.state() if self._stream is not None else None)
        return True

    def _lane(self, place: int) -> int:
        """The lane that gets the row at `place` of the current group; orders are drawn for many groups at once."""
        size = self._plan.lanes
        groups = max(1, min(512, DRAWN // size))
        chunk, within = divmod(self._group, groups)
        if self._orders[0] != chunk:
            counter = np.arange(chunk * groups * size, (chunk + 1) * groups * size, dtype=np.uint64)
            with np.errstate(over="ignore"):
                drawn = mix(counter + np.uint64(key(self._plan.seed, self._epoch, "deal")))
            order = np.argsort(drawn.reshape(groups, size), axis=1, kind="stable")
            if not self._plan.shuffled:
                order = np.broadcast_to(np.arange(size), (groups, size))
            self._orders = (chunk, order)
        return int(self._orders[1][within, place])


# -- serving -----------------------------------------------------------------------------------------------------------


class LaneServer:
    """Micro-batches of the lanes that one reader serves, for one epoch.

    `encode(rows)` cleans and tokenizes raw rows: for each one an example with its padded-token length, or None for a
    row that is left out (bad rows under on_bad_row: skip, rows held out for validation). `label(row)` may be None.
    `pack(examples)` makes sequences of a block's examples: for each one its padded-token length, too, and the numbers
    of the examples that begin in it; None: every example is one.
    """

    def __init__(
        self,
        source: RowSource,
        plan: LanePlan,
        encode: Callable[[list[Any]], list[tuple[Example, int] | None]],
        label: Callable[[Any], str | None] | None = None,
        whole_shards: bool = False,
        pack: Callable[[list[Example]], list[tuple[Example, int, list[int]]]] | None = None,
    ) -> None:
        self._source, self._plan, self._encode, self._label, self._pack = source, plan, encode, label, pack
        self._whole_shards = whole_shards
        self._label_counts: Counter[str] = Counter()
        self._warned = False

    def epoch(self, lanes: Sequence[int], bookmarks: Sequence[Bookmark]) -> dict[int, Iterator[MicroBatch]]:
        """One iterator for each lane, from its bookmark to the end of the bookmark's epoch."""
        epoch = bookmarks[0].epoch
        assert all(b.epoch == epoch for b in bookmarks), "all lanes finish an epoch together"
        if self._whole_shards:
            dealers = {
                lane: Dealer(self._source, self._plan, epoch, [lane], True, mark)
                for lane, mark in zip(lanes, bookmarks, strict=True)
            }
        else:
            first = min(bookmarks, key=lambda b: b.start)
            shared = Dealer(self._source, self._plan, epoch, lanes, False, first)
            dealers = dict.fromkeys(lanes, shared)
        return {lane: self._serve(lane, mark, dealers[lane]) for lane, mark in zip(lanes, bookmarks, strict=True)}

    def _serve(self, lane: int, mark: Bookmark, dealer: Dealer) -> Iterator[MicroBatch]:
        plan, epoch = self._plan, mark.epoch
        start, step, skip = mark.start, mark.first_step, mark.served
        while not dealer.ended(start):
            end = plan.edge_after(start, epoch)
            if start == 0 and dealer.ended(plan.block_rows):
                end = plan.block_rows  # a corpus that fits into one block is one: an edge would leave it half mixed
            remaining = self._block(dealer.take(lane, start, end), lane, epoch, start)
            position, next_position = dealer.position(start), dealer.position(end)
            first, served = step, 0
            while remaining:
                batch = remaining.pop(self._choose(len(remaining), epoch, step))
                step, served = step + 1, served + 1
                if served <= skip:
                    continue
                after = Bookmark(epoch, start, first, served, position)
                if not remaining:
                    after = Bookmark(epoch, end, step, 0, next_position)
                yield MicroBatch(lane, [i for ids, _, _ in batch for i in ids], [e for _, e, _ in batch], after)
            start, skip = end, 0

    def _choose(self, remaining: int, epoch: int, step: int) -> int:
        """Of the remaining micro-batches by length, the one at the quantile that all lanes serve at this step."""
        return int(uniform(self._plan.seed, epoch, step, "serve") * remaining) if self._plan.shuffled else 0

    def _block(self, rows: list[Any], lane: int, epoch: int, start: int) -> list[list[Item]]:
        """A block's rows permuted, encoded, packed, sorted by length in pools, and cut; the micro-batches by length."""
        plan = self._plan
        if plan.shuffled:
            rows = [rows[i] for i in permutation(len(rows), plan.seed, epoch, lane, start)]
        self._watch_labels(rows)
        encoded = self._encode(rows)
        items = [([row.id], *made) for row, made in zip(rows, encoded, strict=True) if made is not None]
        if self._pack is not None:
            ids = [row_ids[0] for row_ids, _, _ in items]
            packed = self._pack([example for _, example, _ in items])
            items = [([ids[i] for i in begun], example, length) for example, length, begun in packed]
        if not items:
            return []
        if not plan.shuffled:
            return self._cut(items)
        mean = sum(length for _, _, length in items) / len(items)
        sizes = [plan.tokens / mean] if plan.tokens else []
        pool = max(1, int(POOL * min([*sizes, *([plan.rows] if plan.rows else [])])))
        batches = []
        for at in range(0, len(items), pool):
            batches += self._cut(sorted(items[at : at + pool], key=lambda item: item[2]))
        return sorted(batches, key=lambda batch: max(length for _, _, length in batch))

    def _cut(self, items: list[Item]) -> list[list[Item]]:
        plan = self._plan
        batches: list[list[Item]] = []
        batch: list[Item] = []
        width = 0
        for item in items:
            wider = max(width, plan.width(item[2]))
            full = plan.rows is not None and len(batch) >= plan.rows
            if batch and (full or (plan.tokens is not None and wider * (len(batch) + 1) > plan.tokens)):
                batches.append(batch)
                batch, wider = [], plan.width(item[2])
            batch.append(item)
            width = wider
        return [*batches, batch] if batch else batches

    def _watch_labels(self, rows: list[Any]) -> None:
        """Warns once when a block's label shares differ by more than 10 points and chance from those before."""
        if self._label is None or self._warned:
            return
        here = Counter(label for label in map(self._label, rows) if label is not None)
        seen, total, n = self._label_counts, sum(self._label_counts.values()), sum(here.values())
        if total and n:
            allowed = LABEL_DRIFT + 2 * math.sqrt(1 / n + 1 / total)  # 4 standard errors: the ends are short blocks
            for label in here.keys() | seen.keys():
                was, now = seen[label] / total, here[label] / n
                if abs(was - now) > allowed:
                    log.warning(
                        "label %r is %.0f%% of a block after %.0f%% before it: the corpus seems sorted by label and "
                        "does not fit into one block; run `rankzero prepare` on the recipe, or raise data.block_rows",
                        label, 100 * now, 100 * was,
                    )  # fmt: skip
                    self._warned = True
                    break
        seen.update(here)
