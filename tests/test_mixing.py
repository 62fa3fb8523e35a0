"""Mixed corpora on lanes: exact quotas, the same steps on any ranks and after resumes, passes and ends of corpora."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lane_helpers import (
    PROPERTY,
    Item,
    LaneSetup,
    Memory,
    Place,
    Step,
    encode,
    resume_anywhere,
    run,
    start,
    uninterrupted,
)

from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import LaneServer
from trainer.data.mixing import MixedRows, Mixture, Readers
from trainer.data.quotas import Quotas, dealt, rows_until_stop, schedule, temperature_weights, whole_weights
from trainer.errors import DataError


@dataclass(frozen=True)
class MixedItem:
    """A usable row, as `Mixture.usable` returns it."""

    id: tuple[int, int]
    length: int
    corpus: int
    bad: bool = False


class Part(Memory):
    """A corpus of a mixture, whose shards are numbered from `first` in row ids."""

    def __init__(self, first: int, sizes: Sequence[int], seed: int, bad: float = 0.0) -> None:
        draw = random.Random(seed)
        super().__init__(
            [
                [Item((first + s, r), draw.randint(1, 20), bad=draw.random() < bad) for r in range(size)]
                for s, size in enumerate(sizes)
            ]
        )

    @property
    def usable(self) -> list[tuple[int, int]]:
        return [item.id for item in self.rows() if not item.bad]


@dataclass(frozen=True)
class MixSetup(LaneSetup):
    """A mixture and a plan. `source` is not used."""

    parts: Sequence[Part] = ()
    quotas: Any = None
    whole: Sequence[bool] = field(default_factory=list)

    def server(self) -> LaneServer:
        def usable(corpus: int, item: Item) -> MixedItem | None:
            return None if item.bad else MixedItem(item.id, item.length, corpus)

        mixture = Mixture(self.parts, self.quotas, usable, self.whole or [False] * len(self.parts))
        return LaneServer(self.source, self.plan, encode, mixture=mixture)  # type: ignore[arg-type]

    def corpus_of(self, shard: int) -> int:
        ends = itertools.accumulate(len(part.shards) for part in self.parts)
        return next(i for i, end in enumerate(ends) if shard < end)


def mix(
    sizes: Sequence[Sequence[int]],
    weights: Sequence[int],
    repeat: Sequence[bool],
    *,
    per_epoch: bool = False,
    plan: LanePlan | None = None,
    bad: float = 0.0,
    epochs: int = 2,
    whole: Sequence[bool] = (),
    seed: int = 0,
) -> MixSetup:
    parts, first = [], 0
    for number, of_part in enumerate(sizes):
        parts.append(Part(first, of_part, 100 * seed + number, bad))
        first += len(of_part)
    rows = [len(part.usable) for part in parts]
    epoch_rows = sum(weights) if per_epoch else sum(rows) if all(repeat) else None
    until = rows_until_stop(weights, rows, repeat)
    expected = min(n for n in (until, epoch_rows) if n is not None)
    names = [f"c{i}" for i in range(len(sizes))]
    quotas = Quotas(names, list(weights), list(repeat), per_epoch, epoch_rows, expected)
    plan = plan or LanePlan(1, 4, 16, 64, None)
    return MixSetup(Memory([]), plan, epochs=epochs, parts=parts, quotas=quotas, whole=whole)


def served(world: MixSetup, steps: Sequence[Step]) -> dict[tuple[int, int], list[int]]:
    """The corpora of the rows of each epoch and lane, in order."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for step in steps:
        for lane, ids in step.ids.items():
            found[step.epoch, lane] += [world.corpus_of(shard) for shard, _ in ids]
    return found


def edges(world: MixSetup, epoch: int, rows: int) -> list[int]:
    """The ends of the blocks of a lane's epoch, as the plan alone gives them."""
    plan, at, found = world.plan, 0, []
    small = world.quotas.expected_rows is not None and world.quotas.expected_rows <= plan.lanes * plan.block_rows
    while at < rows:
        at = plan.block_rows if at == 0 and small else plan.edge_after(at, epoch)
        found.append(min(at, rows))
    return found


# -- quotas ------------------------------------------------------------------------------------------------------------


@settings(PROPERTY, max_examples=100)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_the_share_of_a_corpus_differs_by_less_than_a_row_over_any_prefix(weights: list[int], parts: list[int]) -> None:
    """In exact arithmetic, and wherever a reader starts."""
    taken, total, n = [0] * len(weights), sum(weights), 0
    for rows in parts:
        for corpus in schedule(tuple(weights), tuple(taken), rows):
            taken[corpus], n = taken[corpus] + 1, n + 1
            assert all(abs(count * total - n * weight) < total for count, weight in zip(taken, weights, strict=True))


def test_a_schedule_by_largest_share_alone_would_be_seen() -> None:
    """A planted mistake: always the corpus that is furthest behind, without looking at what others will need."""
    weights, taken, worst = [9, 1, 1, 1, 1, 1, 1, 1], [0] * 8, 0.0
    total = sum(weights)
    for n in range(1, 200):
        behind = [n * weight / total - count for weight, count in zip(weights, taken, strict=True)]
        taken[min(range(8), key=lambda i: (-(behind[i] > 0.05), -i))] += 1
        worst = max(worst, *(abs(count - n * w / total) for count, w in zip(taken, weights, strict=True)))
    assert worst > 1


@settings(PROPERTY, max_examples=100)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 8))
def test_rows_of_an_epoch_are_divided_among_the_lanes_without_a_remainder(
    rows: list[int], lanes: int, first: int
) -> None:
    table = [dealt(rows, lanes, lane, first % lanes) for lane in range(lanes)]
    assert [sum(column) for column in zip(*table, strict=True)] == rows
    assert max(map(sum, table)) - min(map(sum, table)) <= 1
    for column in zip(*table, strict=True):
        assert max(column) - min(column) <= 1


def test_weights_are_exact() -> None:
    assert whole_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_weights([2, 0.5]) == [4, 1]
    assert temperature_weights([1000, 10], 1.0) == [10**9, 10**7]
    assert temperature_weights([10_000, 100], 2.0) == [10**9, 10**8]
    assert rows_until_stop([1, 1], [100, 30], [False, False]) == 60
    assert rows_until_stop([1, 1], [100, 30], [False, True]) == 200


# -- lanes -------------------------------------------------------------------------------------------------------------


@st.composite
def mixes(draw: st.DrawFn) -> MixSetup:
    """Any mixture: few and many shards, rows left out, quotas and weights, corpora that end and that are repeated."""
    lanes, number = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    sizes = [
        draw(st.lists(st.integers(3 * lanes, 8 * lanes), min_size=1, max_size=max(1, lanes))) for _ in range(number)
    ]
    plan = LanePlan(
        seed=draw(st.integers(0, 2**16)),
        lanes=lanes,
        block_rows=draw(st.sampled_from([1, 5, 16, 64, 1000])),
        tokens=draw(st.sampled_from([40, 100])),
        rows=draw(st.sampled_from([None, 3])),
        shuffled=draw(st.integers(0, 3)) > 0,
    )
    made = mix(
        sizes,
        draw(st.lists(st.integers(1, 30), min_size=number, max_size=number)),
        draw(st.lists(st.booleans(), min_size=number, max_size=number)),
        per_epoch=draw(st.booleans()),
        plan=plan,
        bad=draw(st.sampled_from([0.0, 0.2])),
        epochs=draw(st.integers(1, 3)),
        whole=[len(of) >= lanes and draw(st.booleans()) for of in sizes],
        seed=draw(st.integers(0, 100)),
    )
    try:
        uninterrupted(made)
    except DataError as error:  # all rows of a lane are left out
        assume("no usable row for lane" not in str(error))
        raise
    return made


@settings(PROPERTY, max_examples=100)
@given(mixes())
def test_every_block_of_every_lane_has_its_quotas(world: MixSetup) -> None:
    carried: dict[int, list[int]] = defaultdict(lambda: [0] * len(world.parts))
    for (epoch, lane), corpora in served(world, uninterrupted(world)).items():
        weights = list(world.quotas.weights)
        if world.quotas.per_epoch:
            mixture = Mixture((), world.quotas, lambda *_: None, ())
            weights, carried[lane] = list(mixture.lane_weights(lane, world.plan, epoch)), [0] * len(world.parts)
        total, at = sum(weights), 0
        for edge in edges(world, epoch, len(corpora)):
            for corpus in corpora[at:edge]:
                carried[lane][corpus] += 1
            at, n = edge, sum(carried[lane])
            for count, weight in zip(carried[lane], weights, strict=True):
                assert abs(count * total - n * weight) < total, (epoch, lane, edge)


@settings(PROPERTY, max_examples=150)
@given(st.data())
def test_steps_are_the_same_after_any_resumes_anywhere(data: st.DataObject) -> None:
    """Up to three resumes, each on other ranks and loader processes, through JSON: rows and bookmarks agree."""
    resume_anywhere(data, data.draw(mixes()))


@settings(PROPERTY, max_examples=60)
@given(mixes())
def test_a_pass_over_a_corpus_uses_each_row_once(world: MixSetup) -> None:
    """How often a row was used: as often as its lane went through its corpus, by the bookmarks."""
    steps = uninterrupted(world)
    used = Counter(row for step in steps for ids in step.ids.values() for row in ids)
    turns = [[place[0] for place in mark["position"]["corpora"]] for mark in steps[-1].bookmarks if mark["position"]]
    for corpus, part in enumerate(world.parts):
        passes = [of_lane[corpus] for of_lane in turns]
        for row in part.usable:
            assert used[row] <= max(passes, default=0) + 1
            if len(passes) == world.plan.lanes:
                assert used[row] >= min(passes)
    assert not used.keys() - {row for part in world.parts for row in part.usable}


def test_the_end_of_a_corpus_that_is_not_repeated_is_that_of_the_epoch() -> None:
    """Each epoch uses each row of the smaller corpus once. The larger one is read on, and begins again in between."""
    world = mix([[40], [100]], [1, 1], [False, False], epochs=5)
    steps = uninterrupted(world)
    of_small = {item.id for item in world.parts[0].rows()}
    for epoch in range(5):
        rows = [row for step in steps if step.epoch == epoch for ids in step.ids.values() for row in ids]
        assert sorted(row for row in rows if row in of_small) == sorted(of_small)
        assert abs(len(rows) - 80) <= world.plan.lanes
    large = Counter(row for step in steps for ids in step.ids.values() for row in ids if row not in of_small)
    assert len(large) == 100
    assert set(large.values()) <= {1, 2, 3}
    assert sum(large.values()) == pytest.approx(200, abs=20)


def test_a_repeated_corpus_begins_again_in_another_order() -> None:
    world = mix([[3] * 8, [96]], [1, 1], [True, False], epochs=1, plan=LanePlan(1, 1, 1, 64, None))
    small = [row for step in uninterrupted(world) for row in step.ids[0] if row[0] < 8]
    passes = [tuple(small[at : at + 24]) for at in range(0, 96, 24)]
    assert len(set(passes)) == 4
    assert {tuple(sorted(of_pass)) for of_pass in passes} == {tuple(sorted(world.parts[0].usable))}


def test_rows_per_epoch_are_exact() -> None:
    world = mix([[50], [400, 13], [90]], [101, 7, 30], [True, True, True], per_epoch=True, epochs=3, bad=0.1)
    found = served(world, uninterrupted(world))
    for epoch in range(3):
        lanes = [corpora for (at, _), corpora in found.items() if at == epoch]
        assert Counter(itertools.chain(*lanes)) == {0: 101, 1: 7, 2: 30}


def test_a_corpus_without_a_row_for_a_lane_is_refused() -> None:
    world = mix([[3], [100]], [1, 1], [True, True], plan=LanePlan(1, 8, 16, 64, None, shuffled=False))
    with pytest.raises(DataError, match=r"data\.mix: c0 has no usable row for lane 3: set data\.lanes"):
        uninterrupted(world)


def test_other_weights_begin_the_schedule_again() -> None:
    """As --allow-change data.mix.c1.weight does in the middle of an epoch: proportions hold from there on."""
    before, after = (mix([[300], [300]], weights, [True, True], epochs=1) for weights in ([1, 1], [9, 1]))
    first, state = run(before, start(before), Place(), 12)
    rest, _ = run(after, state, Place(2))
    begun = {lane: sum(len(step.ids.get(lane, ())) for step in first) for lane in range(4)}
    for lane in range(4):
        corpora = [after.corpus_of(shard) for step in rest for shard, _ in step.ids.get(lane, ())]
        at = [n - begun[lane] for n in edges(after, 0, 150) if n >= begun[lane]]
        counts = Counter(corpora[at[0] : at[-2]])
        assert abs(counts[1] - (at[-2] - at[0]) / 10) <= 2


def test_a_packed_sequence_has_rows_of_one_corpus() -> None:
    """Rows continue in the next sequence; the order of the sequences mixes the corpora."""
    world = mix([[60], [60]], [1, 1], [True, True], epochs=1, plan=LanePlan(1, 2, 30, 200, None))

    def pack(examples: list[Any]) -> list[Any]:
        tokens = [(i, token) for i, example in enumerate(examples) for token in example["x"]]
        pieces = [tokens[at : at + 20] for at in range(0, len(tokens), 20)]
        first = {i: min(at for at, piece in enumerate(pieces) if any(i == n for n, _ in piece)) for i, _ in tokens}
        begun = [[i for i, at in first.items() if at == number] for number in range(len(pieces))]
        return [({"x": [t for _, t in piece]}, len(piece), of) for piece, of in zip(pieces, begun, strict=True)]

    server = world.server()
    server._pack = pack
    ids: list[Any] = []
    kinds: list[int] = []
    for stream in server.epoch([0, 1], [Bookmark(), Bookmark()]).values():
        for part in stream:
            ids += part.ids
            kinds += [corpus for corpus, _ in part.corpora]
            assert sum(begun for _, begun in part.corpora) == len(part.ids)
            at = 0
            for corpus, begun in part.corpora:
                assert {world.corpus_of(shard) for shard, _ in part.ids[at : at + begun]} <= {corpus}
                at += begun
    assert len(ids) == 120
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 5


@pytest.mark.parametrize("whole", [False, True])
def test_a_long_corpus_keeps_few_positions(whole: bool) -> None:
    plan = LanePlan(1, 2, 8, 64, None)
    world = mix([[4000, 4000], [300, 300]], [9, 1], [False, True], plan=plan, whole=[whole, False])
    mixture: Any = world.server()._mixture
    readers = Readers(mixture, plan, [0, 1])
    lanes = [MixedRows(readers, lane, Bookmark()).blocks() for lane in (0, 1)]
    most = 0
    for _ in zip(*lanes, strict=True):
        most = max(most, *(len(dealer._positions) for dealer in readers._dealers.values()))
    assert 64 < most < 100
