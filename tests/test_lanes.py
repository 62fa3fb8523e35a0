"""Lanes: each row once an epoch, and the same steps on any ranks, loader processes, stops and resumes."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_helpers import (
    PROPERTY,
    Item,
    LaneSetup,
    Memory,
    MemoryStream,
    Place,
    caption_lengths,
    encode,
    lane_setups,
    one_shard,
    resume_anywhere,
    run,
    simulated_processes,
    start,
    uninterrupted,
)

from trainer.data.counter_rng import key, permutation, uniform
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import LaneServer, RowId

# -- nothing lost, nothing repeated, the same steps ----------------------------------------------------------------


@settings(PROPERTY, max_examples=150)
@given(lane_setups())
def test_each_row_is_served_once_an_epoch_within_the_bounds(world: LaneSetup) -> None:
    steps = uninterrupted(world)
    plan, items = world.plan, {item.id: item for item in world.source.rows()}
    usable = sorted(item.id for item in items.values() if not item.bad)
    for epoch in range(world.epochs):
        served = [ids for step in steps if step.epoch == epoch for ids in step.ids.values()]
        assert sorted(itertools.chain(*served)) == usable
    for ids in (ids for step in steps for ids in step.ids.values()):
        assert ids, "a lane without rows is not in a step"
        assert plan.rows is None or len(ids) <= plan.rows
        padded = len(ids) * math.ceil(max(items[i].length for i in ids) / plan.multiple) * plan.multiple
        assert plan.tokens is None or padded <= plan.tokens or len(ids) == 1, "a row alone may be longer than allowed"


@settings(PROPERTY, max_examples=100)
@given(lane_setups())
def test_lanes_finish_an_epoch_together(world: LaneSetup) -> None:
    """A lane serves at every step from the first of the epoch until it is done, and not again before the next epoch."""
    for _, group in itertools.groupby(uninterrupted(world), key=lambda step: step.epoch):
        steps = list(group)
        assert all(mark["epoch"] == steps[0].epoch for step in steps for mark in step.bookmarks)
        assert all(mark["served"] == 0 for mark in steps[-1].bookmarks), "no block is read again in vain"
        active = [set(step.ids) for step in steps]
        assert all(later <= earlier for earlier, later in itertools.pairwise(active))
        for lane in range(world.plan.lanes):
            marks = [step.bookmarks[lane] for step in steps]
            served = sum(lane in lanes for lanes in active)
            assert all(mark == marks[served - 1] for mark in marks[served:]), "the bookmark of a done lane stands still"


@settings(PROPERTY, max_examples=200)
@given(st.data())
def test_steps_are_the_same_after_any_resumes_anywhere(data: st.DataObject) -> None:
    """Up to three resumes, each on other ranks, loader processes and fusing, through JSON: rows and bookmarks agree."""
    resume_anywhere(data, data.draw(lane_setups()))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("resumes", [1, 2])
@pytest.mark.parametrize("shards", [1, 3, 8], ids=["one-shard", "fewer-than-lanes", "whole-shards"])
@pytest.mark.parametrize("block_rows", [7, 1000])
def test_steps_are_the_same_after_every_stop_of_an_epoch(
    epoch: int, resumes: int, shards: int, block_rows: int
) -> None:
    """Every stop point of the epoch, the second resume right behind the first and far behind it."""
    draw = random.Random(0)
    source = Memory([[Item((s, r), draw.randint(1, 30)) for r in range(96 // shards)] for s in range(shards)])
    world = LaneSetup(source, LanePlan(3, 4, block_rows, 64, None, 4), whole_shards=shards == 8)
    expected = uninterrupted(world)
    first = next(i for i, step in enumerate(expected) if step.epoch == epoch)
    last = first + sum(step.epoch == epoch for step in expected)
    with simulated_processes():
        for stop in range(first + 1, last - resumes):
            state, found = start(world), []
            ends = [stop, draw.choice([stop + 1, draw.randrange(stop + 1, last)])][:resumes]
            at = 0
            for number, end in enumerate([*ends, len(expected)]):
                part, state = run(world, state, [Place(1), Place(4, 1), Place(2, 2)][number], end - at)
                found, at = found + part, end
            assert found == expected, ends


def test_a_bookmark_is_a_few_integers() -> None:
    """It is what a checkpoint holds of a lane: small, and without anything of the rows."""
    world = LaneSetup(one_shard(caption_lengths(500)), LanePlan(1, 4, 32, 128, None))
    for step in uninterrupted(world):
        assert all(len(json.dumps(mark)) < 200 for mark in step.bookmarks)


def test_a_resumed_reader_continues_from_its_position_and_reads_no_earlier_row() -> None:
    read: list[RowId] = []

    class Watched(MemoryStream):
        def __next__(self) -> Item:
            item = super().__next__()
            read.append(item.id)
            return item

    source = one_shard([8] * 2000)
    source.stream = lambda shard, state=None: Watched(source.shards[shard], state)  # type: ignore[method-assign]
    world = LaneSetup(source, LanePlan(1, 4, 100, 80, None), epochs=1)
    steps, state = run(world, start(world), Place(), 35)
    block = min(mark["start"] for mark in state["bookmarks"])
    assert block > 0, "the run is in a later block"
    read.clear()
    rest, _ = run(world, state, Place())
    assert min(read) == (0, 4 * block)
    assert steps + rest == uninterrupted(world)


def test_a_bookmark_keeps_its_position_although_the_edges_of_blocks_have_moved() -> None:
    """By another seed. Lanes are in different blocks, of which the stream passes only the edges of the new seed."""
    old, new = LanePlan(1, 4, 100, 80, None), LanePlan(2, 4, 100, 80, None)
    edges = [old.edge_after(0, 0), old.edge_after(old.edge_after(0, 0), 0)]
    marks = [Bookmark(0, edge, 5, 1, (0, {"row": 4 * edge, "offsets": [40 * edge]})) for edge in (*edges, *edges)]
    lanes = LaneServer(one_shard([8] * 2000), new, encode).epoch(range(4), marks)
    for lane, mark in enumerate(marks):
        after = next(lanes[lane]).bookmark
        assert (after.start, after.position) == (mark.start, mark.position)


# -- keyed randomness --------------------------------------------------------------------------------------------------


def test_draws_are_the_same_everywhere() -> None:
    """Checkpoints of old runs depend on these very numbers."""
    assert key(1, 0, "deal") == 3890614472173400954
    assert permutation(8, 1, 2, "x").tolist() == [2, 6, 4, 3, 1, 0, 5, 7]
    assert uniform(1, 0, 5, "serve") == 0.13218980782083445


@settings(PROPERTY, max_examples=30)
@given(st.integers(0, 300), st.integers(0, 2**40))
def test_a_permutation_holds_each_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, seed)) == list(range(n))


def test_permutations_are_uniform() -> None:
    """Each of 4 places gets each of 4 numbers equally often (chi-squared over 3,000 keys: 99.9% lie below 38)."""
    table = np.zeros((4, 4))
    for seed in range(3000):
        table[np.arange(4), permutation(4, seed, "test")] += 1
    assert ((table - 750) ** 2 / 750).sum() < 38
