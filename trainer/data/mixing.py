"""Mix corpora: each lane takes rows of several corpora in exact proportions (`data.mix`).

Every corpus is dealt to the lanes separately. A lane decides for each of its rows which corpus it comes from: over any
prefix, the rows of a corpus differ from its share by less than one. Only usable rows count. A lane reads a corpus to
its end, over epochs, and then begins it again in another order. See docs/explanation/lanes.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from trainer.data.cleaning import BadRow
from trainer.data.counter_rng import key
from trainer.data.dealer import Dealer, RowSource
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import Block
from trainer.data.left_out import LeftOut
from trainer.data.quotas import Quotas, dealt, fits, schedule
from trainer.errors import DataError

GRID = 8  # positions of a corpus that are kept for each block: a resume reads at most so much of a block twice
NEVER = 2**63  # a row that no lane reaches
Seen = tuple[int, Any, Any]  # the pass, a row as read, and what `Mixture.usable` has returned
EMPTY_PASSES = 16  # passes over a corpus in which a lane may find no usable row


@dataclass(frozen=True)
class Mixture:
    """The corpora of a run.

    Attributes:
        sources: the rows of each corpus.
        quotas: in which proportions.
        usable: returns what `encode` gets for a raw row of a corpus (by number), or None or what is wrong for a row
            that is left out.
        whole_shards: of each corpus, whether its shards are dealt to the lanes, not its rows.
        tally: counts rows that were read, and those that are left out. None: no counts.
    """

    sources: Sequence[RowSource]
    quotas: Quotas
    usable: Callable[[int, Any], Any]
    whole_shards: Sequence[bool]
    tally: Callable[[Sequence[Seen]], LeftOut] | None = None

    def blocks(self, plan: LanePlan, marks: dict[int, Bookmark]) -> dict[int, Iterator[Block]]:
        """Return the blocks of each lane from its bookmark to the end of the bookmark's epoch."""
        readers = Readers(self, plan, list(marks))
        lanes = {lane: MixedRows(readers, lane, mark) for lane, mark in marks.items()}  # all, before one of them reads
        return {lane: rows.blocks() for lane, rows in lanes.items()}

    def lane_weights(self, lane: int, plan: LanePlan, epoch: int) -> tuple[int, ...]:
        """Return the weights of the corpora in a lane. The rows of an epoch are divided without a remainder."""
        weights = self.quotas.weights
        return tuple(_dealt(weights, plan, lane, epoch) if self.quotas.per_epoch else weights)

    def lane_rows(self, lane: int, plan: LanePlan, epoch: int) -> int | None:
        """Return the rows of a lane's epoch; None if a corpus ends it."""
        rows = self.quotas.epoch_rows
        return None if rows is None else sum(_dealt([rows], plan, lane, epoch))


def _dealt(rows: Sequence[int], plan: LanePlan, lane: int, epoch: int) -> list[int]:
    return dealt(rows, plan.lanes, lane, key(plan.seed, epoch, "quotas") % plan.lanes)


@dataclass(frozen=True)
class Place:
    """Where a lane is in a corpus.

    Attributes:
        turn: passes over the corpus before.
        row: of the lane's rows in this pass, the next one.
        ends: the end of this pass ends the epoch: the pass was begun with the epoch, and the corpus is not repeated.
        kept: a row up to `row`, and the position of the stream there.
    """

    turn: int = 0
    row: int = 0
    ends: bool = False
    kept: tuple[int, Any] = (0, None)

    def to_json(self) -> list[Any]:
        return [self.turn, self.row, int(self.ends), *self.kept]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Place:
        turn, row, ends, kept_row, position = values
        return cls(turn, row, bool(ends), (kept_row, position))


class Readers:
    """The streams of the corpora for some lanes: one for each pass, or for each pass and lane.

    Attributes:
        ends: by corpus and lane, the place up to which rows were read.
    """

    def __init__(self, mixture: Mixture, plan: LanePlan, lanes: Sequence[int]) -> None:
        self.mixture, self.plan, self._lanes = mixture, plan, lanes
        self.ends: dict[tuple[int, int], Place] = {}
        self._dealers: dict[tuple[int, int, int | None], Dealer] = {}
        self._users: dict[tuple[int, int, int | None], int] = {}  # lanes that have not left a pass

    def dealer(self, corpus: int, lane: int) -> Dealer:
        """Return the dealer of the pass that a lane is in."""
        turn, whole = self.ends[corpus, lane].turn, self.mixture.whole_shards[corpus]
        at = (corpus, turn, lane if whole else None)
        if at not in self._dealers:
            lanes = [lane] if whole else self._lanes
            kept = min((self._begin(self.ends[corpus, other], turn) for other in lanes), key=lambda kept: kept[0])
            begin = Bookmark(turn, kept[0], position=kept[1])
            source, plan = self.mixture.sources[corpus], self._plan_of(corpus)
            self._dealers[at] = Dealer(source, plan, turn, lanes, whole, begin)
            self._users[at] = sum(self.ends[corpus, other].turn <= turn for other in lanes)
        return self._dealers[at]

    @staticmethod
    def _begin(place: Place, turn: int) -> tuple[int, Any]:
        """Return the row from which a lane needs a pass. One that is in an earlier pass needs all of it."""
        return place.kept if place.turn == turn else (0 if place.turn < turn else NEVER, None)

    def _plan_of(self, corpus: int) -> LanePlan:
        """Return the plan of a corpus alone: it has its own order, and keeps positions within a block."""
        quotas = self.mixture.quotas
        rows = max(1, self.plan.block_rows * quotas.weights[corpus] // sum(quotas.weights) // GRID)
        return replace(self.plan, seed=key(self.plan.seed, "mix", quotas.names[corpus]), block_rows=rows)

    def leave(self, corpus: int, lane: int) -> None:
        """Begin the next pass of a lane. The stream of a pass that no lane needs any more is closed."""
        turn = self.ends[corpus, lane].turn
        self.ends[corpus, lane] = Place(turn + 1)
        at = (corpus, turn, lane if self.mixture.whole_shards[corpus] else None)
        self._users[at] -= 1
        if not self._users[at]:
            del self._users[at], self._dealers[at]

    def forget(self, corpus: int, lane: int) -> None:
        """Drop the positions of a stream that no lane needs any more, once there are many."""
        dealer, end = self.dealer(corpus, lane), self.ends[corpus, lane]
        if not dealer.crowded:
            return
        ends = [end] if self.mixture.whole_shards[corpus] else [self.ends[corpus, other] for other in self._lanes]
        dealer.forget_before(min(self._begin(other, end.turn)[0] for other in ends))


class Share:
    """The rows of one corpus for one lane: usable rows that were read, and the place of the first one.

    Args:
        readers: of the reader.
        corpus: its number.
        lane: of the reader.
        place: where the lane is.
    """

    def __init__(self, readers: Readers, corpus: int, lane: int, place: Place) -> None:
        self._readers, self._corpus, self._lane = readers, corpus, lane
        self._name, self._repeat = readers.mixture.quotas.names[corpus], readers.mixture.quotas.repeat[corpus]
        # each row with the place after it, and all rows from the usable one before it up to it
        self._buffer: deque[tuple[Place, Any, list[Seen]]] = deque()
        self._seen: list[Seen] = []  # after the last row of the buffer
        self.place = self._end = place

    @property
    def _end(self) -> Place:
        return self._readers.ends[self._corpus, self._lane]

    @_end.setter
    def _end(self, place: Place) -> None:
        self._readers.ends[self._corpus, self._lane] = place

    def start_epoch(self) -> None:
        """Begin another pass if no row is left of this one. Decide whether the end of the pass is that of the epoch."""
        self._end = replace(self._end, ends=False)
        self.available(1)
        first = self._buffer[0][0].turn
        self.place = self.place if self.place.turn == first else Place(first)
        ends = self.place.row == 0 and not self._repeat
        self.place = replace(self.place, ends=ends)
        self._end = replace(self._end, ends=ends)
        self._buffer = deque((replace(place, ends=ends), *more) for place, *more in self._buffer)

    def available(self, rows: int) -> int:
        """Read until there are so many rows. Return how many there are, which is less where the epoch ends.

        Raises:
            DataError: no row of the corpus is for this lane.
        """
        empty = 0
        while (missing := rows - len(self._buffer)) > 0:
            end, dealer = self._end, self._readers.dealer(self._corpus, self._lane)
            if dealer.ended(end.row):
                if end.ends:
                    break
                empty += 1
                if empty > EMPTY_PASSES:
                    raise DataError(
                        f"data.mix: {self._name} has no usable row for lane {self._lane}: set data.lanes to a "
                        f"smaller number, or give {self._name} more rows"
                    )
                self._readers.leave(self._corpus, self._lane)
                continue
            found = dealer.numbered(self._lane, end.row, end.row + missing)
            last = min(end.row + missing, dealer.reached)
            for number, row in found:
                usable = self._readers.mixture.usable(self._corpus, row)
                left_out = usable is None or isinstance(usable, BadRow)
                if self._readers.mixture.tally is not None:
                    self._seen.append((end.turn, row if left_out else usable, usable))
                if not left_out:
                    self._buffer.append((replace(end, row=number + 1), usable, self._seen))
                    self._seen, empty = [], 0
            self._end = replace(end, row=last, kept=dealer.position_before(last))
        return min(rows, len(self._buffer))

    def take(self, rows: int) -> tuple[list[Any], list[Seen]]:
        """Return the next rows, which are available, and all rows that were read for them."""
        found = [self._buffer.popleft() for _ in range(rows)]
        seen = [row for _, _, rows in found for row in rows]
        if found:
            self.place = found[-1][0] if self._buffer else self._end
            seen += self.rest()
            self._readers.forget(self._corpus, self._lane)
        return [row for _, row, _ in found], seen

    def rest(self) -> list[Seen]:
        """Return the rows that are left out at the end of a pass, after its last usable row."""
        if self._buffer or not self._seen:
            return []
        self.place, seen, self._seen = self._end, self._seen, []
        return seen


class MixedRows:
    """The rows of one lane, from its bookmark on."""

    def __init__(self, readers: Readers, lane: int, mark: Bookmark) -> None:
        mixture, plan = readers.mixture, readers.plan
        self._mixture, self._plan, self._mark = mixture, plan, mark
        number = len(mixture.sources)
        state = mark.position or {"taken": [0] * number, "corpora": [Place().to_json()] * number}
        self._taken = tuple(state["taken"])
        places = [Place.from_json(values) for values in state["corpora"]]
        self._shares = [Share(readers, corpus, lane, place) for corpus, place in enumerate(places)]
        self._weights = mixture.lane_weights(lane, plan, mark.epoch)
        if not fits(self._weights, self._taken):  # --allow-change has given other weights: the schedule begins again
            self._taken = (0,) * number
        self._limit = mixture.lane_rows(lane, plan, mark.epoch)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks up to the end of the epoch."""
        start = self._mark.start
        if start == 0 and self._limit != 0:
            self._taken = (0,) * len(self._shares) if self._mixture.quotas.per_epoch else self._taken
            for share in self._used():
                share.start_epoch()
        while (size := self._block_rows(start)) > 0:
            before = self._position()
            rows, left = self._take(size)
            if not rows:
                break
            end = start + len(rows)
            yield Block(start, end, rows, before, self._position(), left)
            start = end
        before, left = self._position(), self._counts([row for share in self._shares for row in share.rest()])
        if left is not None and left.rows:
            yield Block(start, start, [], before, self._position(), left)

    def _counts(self, seen: Sequence[Seen]) -> LeftOut | None:
        return None if self._mixture.tally is None else self._mixture.tally(seen)

    def _used(self) -> list[Share]:
        return [share for share, weight in zip(self._shares, self._weights, strict=True) if weight]

    def _block_rows(self, start: int) -> int:
        """Return the rows up to the end of a block, or of the epoch if that is known."""
        plan = self._plan
        end = plan.edge_after(start, self._mark.epoch)
        if start == 0 and self._mixture.quotas.one_block(plan.lanes, plan.block_rows):
            end = plan.block_rows  # an edge would divide it
        return (end if self._limit is None else min(end, self._limit)) - start

    def _take(self, size: int) -> tuple[list[Any], LeftOut | None]:
        """Return the next rows in the order of the schedule, up to the first one that is not available.

        Also return the counts of all rows that were read for them.
        """
        order = schedule(self._weights, self._taken, size)
        for corpus, share in enumerate(self._shares):
            wanted = order.count(corpus)
            if (there := share.available(wanted)) < wanted:
                at = next(islice((i for i, other in enumerate(order) if other == corpus), there, None))
                order = order[:at]
        taken = [share.take(order.count(corpus)) for corpus, share in enumerate(self._shares)]
        rows, left = [iter(of) for of, _ in taken], self._counts([row for _, seen in taken for row in seen])
        self._taken = tuple(n + order.count(corpus) for corpus, n in enumerate(self._taken))
        return [next(rows[corpus]) for corpus in order], left

    def _position(self) -> dict[str, Any]:
        return {"taken": list(self._taken), "corpora": [share.place.to_json() for share in self._shares]}
