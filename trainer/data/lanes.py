"""Lanes: the recipe alone determines what an optimizer step contains, not ranks, workers or restarts.

A corpus is dealt to L lanes. A lane is a deterministic stream of micro-batches, each with the bookmark that follows it.
Rank r of W owns lanes r, r+W, …. One optimizer step is one micro-batch of every lane. All randomness comes from
`key(seed, epoch, …)`, so that no random state has to be saved. See docs/explanation/lanes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.data.counter_rng import permutation, uniform
from trainer.data.dealer import Dealer, RowSource
from trainer.data.labels import LabelWatch
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.left_out import LeftOut

POOL = 50  # micro-batches of rows that are sorted by length together; they are mixed differently in each epoch
Example = dict[str, list[int]]
RowId = tuple[int, int]
Item = tuple[
    list[RowId], Example, int, int
]  # a sequence: the rows that begin in it, its padded-token length, its corpus


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one lane (of several, if fused) at one step, with the bookmark that follows.

    Attributes:
        left: the rows of a block that are left out, in its first micro-batch, where a tally is kept. A lane that
            ends with such rows only has a last micro-batch without examples.
        left_out: rows that are left out, spread evenly over the micro-batches of their block.
    """

    lane: int
    ids: list[RowId]  # rows that begin in it: each row once per epoch, even if it fills several sequences
    examples: list[Example]
    bookmark: Bookmark
    corpora: list[tuple[int, int]]  # of each example: its corpus in a mixture, and how many rows begin in it
    left: LeftOut | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Block:
    """The rows of a lane that are permuted and cut together.

    Attributes:
        position, next_position: of the stream at `start` and at `end`.
        left: counts of the rows of a mixture, without those that it does not have yet. None: no counts.
    """

    start: int
    end: int
    rows: list[Any]
    position: Any
    next_position: Any
    left: LeftOut | None = None


class MixedCorpora(Protocol):
    """Several corpora in given proportions (`trainer.data.mixing.Mixture`)."""

    def blocks(self, plan: LanePlan, marks: dict[int, Bookmark]) -> dict[int, Iterator[Block]]: ...


class LaneServer:
    """Makes the micro-batches of the lanes of one reader, for one epoch.

    Args:
        source: the rows.
        plan: how they are dealt and cut.
        encode: cleans and tokenizes raw rows. It returns for each row an example and its padded length, or None for a
            row that is left out: a bad row under `on_bad_row: skip`, or a row held out for validation. With a tally
            a bad row is returned as what is wrong with it.
        label: the label of a raw row, if it has one.
        whole_shards: whether whole shards are dealt, not rows.
        pack: makes sequences from a block's examples. It returns for each sequence its padded length and the numbers
            of the examples that begin in it. None: every example is a sequence.
        tally: counts the rows of a block that are left out, by rows and what `encode` has returned. None: no counts.
        mixture: the corpora of `data.mix`, in place of `source`. Their rows have a `corpus`.
    """

    def __init__(
        self,
        source: RowSource,
        plan: LanePlan,
        encode: Callable[[list[Any]], list[Any]],
        label: Callable[[Any], str | None] | None = None,
        whole_shards: bool = False,
        pack: Callable[[list[Example]], list[tuple[Example, int, list[int]]]] | None = None,
        tally: Callable[[list[Any], list[Any]], LeftOut] | None = None,
        mixture: MixedCorpora | None = None,
    ) -> None:
        self._mixture = mixture
        self._source, self._plan, self._encode, self._pack = source, plan, encode, pack
        self._watch = LabelWatch(label) if label is not None else None
        self._whole_shards, self._tally = whole_shards, tally

    def epoch(self, lanes: Sequence[int], bookmarks: Sequence[Bookmark]) -> dict[int, Iterator[MicroBatch]]:
        """Return one iterator for each lane, from its bookmark to the end of the bookmark's epoch."""
        epoch = bookmarks[0].epoch
        assert all(b.epoch == epoch for b in bookmarks), "all lanes finish an epoch together"
        marks = dict(zip(lanes, bookmarks, strict=True))
        if self._mixture is not None:
            blocks = self._mixture.blocks(self._plan, marks)
            return {lane: self._serve(lane, marks[lane], blocks[lane]) for lane in lanes}
        streams: dict[int, Iterator[MicroBatch]] = {}
        for group in [[lane] for lane in lanes] if self._whole_shards else [lanes]:
            first = min((marks[lane] for lane in group), key=lambda mark: mark.start)
            dealer = Dealer(self._source, self._plan, epoch, group, self._whole_shards, first)
            streams |= {lane: self._serve(lane, marks[lane], self._blocks(lane, marks[lane], dealer)) for lane in group}
        return streams

    def _blocks(self, lane: int, mark: Bookmark, dealer: Dealer) -> Iterator[Block]:
        """Yield the blocks of a lane of a single corpus."""
        plan, start = self._plan, mark.start
        while not dealer.ended(start):
            end = plan.edge_after(start, mark.epoch)
            if start == 0 and dealer.ended(plan.block_rows):
                end = plan.block_rows  # a corpus that fits into one block is one: an edge would divide it
            rows = dealer.take(lane, start, end)
            # a bookmark has the position of its block, which may begin at an edge of a plan that has been changed since
            position = mark.position if start == mark.start else dealer.position(start)
            yield Block(start, end, rows, position, dealer.position(end))
            start = end

    def _serve(self, lane: int, mark: Bookmark, blocks: Iterator[Block]) -> Iterator[MicroBatch]:
        epoch, step, skip = mark.epoch, mark.first_step, mark.served
        before: LeftOut | None = None  # of the blocks without micro-batches right before this one
        last = mark
        for block in blocks:
            remaining, found = self._block(block, lane, epoch)
            block.rows.clear()  # not kept while their micro-batches are served
            first, served = step, 0
            left = found if before is None or found is None else before + found
            rows, of = self._left_out(found), len(remaining)
            while remaining:
                batch = remaining.pop(self._choose(len(remaining), epoch, step))
                step, served = step + 1, served + 1
                if served <= skip:
                    continue
                after = Bookmark(epoch, block.start, first, served, block.position)
                if not remaining:
                    after = Bookmark(epoch, block.end, step, 0, block.next_position)
                ids, corpora = [i for item in batch for i in item[0]], [(item[3], len(item[0])) for item in batch]
                examples, share = [item[1] for item in batch], rows * served // of - rows * (served - 1) // of
                if served == 1:
                    share += self._left_out(before)
                yield MicroBatch(lane, ids, examples, after, corpora, left if served == 1 else None, share)
            skip, before = 0, None if of else left
            last = Bookmark(epoch, block.end, step, 0, block.next_position)
        if before is not None and before.rows:
            yield MicroBatch(lane, [], [], last, [], before, self._left_out(before))

    def _left_out(self, counts: LeftOut | None) -> int:
        """Return rows that an epoch has, but no micro-batch. An epoch of a mixture has usable rows only."""
        return counts.rows if counts is not None and self._mixture is None else 0

    def _choose(self, remaining: int, epoch: int, step: int) -> int:
        """Return which of the remaining micro-batches comes next: the same quantile of length for all lanes."""
        return int(uniform(self._plan.seed, epoch, step, "serve") * remaining) if self._plan.shuffled else 0

    def _block(self, block: Block, lane: int, epoch: int) -> tuple[list[list[Item]], LeftOut | None]:
        """Permute, encode and pack the rows of a block, sort them in pools and cut them into micro-batches.

        Return them, and the tally of the rows that are left out.
        """
        plan, mixed, rows = self._plan, self._mixture is not None, block.rows
        if plan.shuffled:
            rows = [rows[i] for i in permutation(len(rows), plan.seed, epoch, lane, block.start)]
        if self._watch is not None and epoch == 0:  # loader processes of later epochs would warn again
            self._watch.add(rows)
        encoded, items = self._encode(rows), list[Item]()
        left = block.left if self._tally is None else self._tally(rows, encoded)
        for row, example in zip(rows, encoded, strict=True):
            if isinstance(example, tuple):
                items.append(([row.id], *example, row.corpus if mixed else 0))
        if self._pack is not None:
            items = self._packed(items, lane, epoch, block.start)
        if not items or not plan.shuffled:
            return self._cut(items), left
        mean = sum(item[2] for item in items) / len(items)
        sizes = [plan.tokens / mean] if plan.tokens else []
        pool = max(1, int(POOL * min([*sizes, *([plan.rows] if plan.rows else [])])))
        batches = []
        for at in range(0, len(items), pool):
            batches += self._cut(sorted(items[at : at + pool], key=lambda item: item[2]))
        return sorted(batches, key=lambda batch: max(item[2] for item in batch)), left

    def _packed(self, items: list[Item], lane: int, epoch: int, start: int) -> list[Item]:
        """Pack the examples of a block. A sequence has rows of one corpus only."""
        assert self._pack is not None
        sequences: list[Item] = []
        corpora = sorted({item[3] for item in items})
        for corpus in corpora:
            own = [item for item in items if item[3] == corpus]
            packed = self._pack([item[1] for item in own])
            sequences += [([own[i][0][0] for i in begun], example, width, corpus) for example, width, begun in packed]
        if self._plan.shuffled and len(corpora) > 1:
            order = permutation(len(sequences), self._plan.seed, epoch, lane, start, "packed")
            sequences = [sequences[i] for i in order]
        return sequences

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
