"""Lanes: each row once an epoch, and the same steps on any ranks, loader processes, stops and resumes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_world import (
    PROPERTY,
    Item,
    Memory,
    MemoryStream,
    Place,
    Step,
    World,
    caption_lengths,
    encode,
    one_shard,
    places,
    run,
    simulated_processes,
    start,
    worlds,
)

from trainer.data.keyed import key, permutation, uniform
from trainer.data.lanes import Bookmark, LanePlan, LaneServer, MicroBatch, RowId

PLAN = LanePlan(seed=1, lanes=4, block_rows=16_384, tokens=512, rows=None)


def whole(world: World) -> list[Step]:
    return run(world, start(world), Place())[0]


def serve(source: Any, plan: LanePlan, epoch: int = 0, encoder: Any = encode) -> dict[int, list[MicroBatch]]:
    """All lanes of an epoch, their micro-batches taken in turns as a step takes them."""
    server = LaneServer(source, plan, encoder)
    streams = server.epoch(range(plan.lanes), [Bookmark(epoch)] * plan.lanes)
    found: dict[int, list[MicroBatch]] = {lane: [] for lane in streams}
    while True:
        step = [part for stream in streams.values() if (part := next(stream, None)) is not None]
        if not step:
            return found
        for part in step:
            found[part.lane].append(part)


# -- nothing lost, nothing repeated, the same steps ----------------------------------------------------------------


@settings(PROPERTY, max_examples=150)
@given(worlds())
def test_each_row_is_served_once_an_epoch_within_the_bounds(world: World) -> None:
    steps = whole(world)
    plan, items = world.plan, {item.id: item for item in world.source.rows()}
    usable = sorted(item.id for item in items.values() if not item.bad)
    for epoch in range(world.epochs):
        served = [ids for step in steps if step.epoch == epoch for ids in step.ids.values()]
        assert sorted(itertools.chain(*served)) == usable
    for ids in (ids for step in steps for ids in step.ids.values()):
        assert ids, "a lane without rows is not in a step"
        assert plan.rows is None or len(ids) <= plan.rows
        padded = len(ids) * plan.width(max(items[i].length for i in ids))
        assert plan.tokens is None or padded <= plan.tokens or len(ids) == 1, "a row alone may be longer than allowed"


@settings(PROPERTY, max_examples=100)
@given(worlds())
def test_lanes_finish_an_epoch_together(world: World) -> None:
    """A lane serves at every step from the first of the epoch until it is done, and not again before the next epoch."""
    for _, group in itertools.groupby(whole(world), key=lambda step: step.epoch):
        steps = list(group)
        assert all(mark["epoch"] == steps[0].epoch for step in steps for mark in step.bookmarks)
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
    world = data.draw(worlds())
    expected = whole(world)
    stops = data.draw(st.lists(st.integers(1, max(1, len(expected))), min_size=1, max_size=3, unique=True).map(sorted))
    state, found = start(world), []
    with simulated_processes():
        for begin, end in itertools.pairwise([0, *stops]):
            part, state = run(world, state, data.draw(places(world.plan.lanes)), end - begin)
            found += part
        part, _ = run(world, state, data.draw(places(world.plan.lanes)))
    assert found + part == expected


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
    world = World(source, LanePlan(3, 4, block_rows, 64, None, 4), whole_shards=shards == 8)
    expected = whole(world)
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
    world = World(one_shard(caption_lengths(500)), LanePlan(1, 4, 32, 128, None))
    for step in whole(world):
        assert all(len(json.dumps(mark)) < 200 for mark in step.bookmarks)


def test_a_resumed_reader_goes_on_from_the_position_and_reads_no_earlier_row() -> None:
    read: list[RowId] = []

    class Watched(MemoryStream):
        def __next__(self) -> Item:
            item = super().__next__()
            read.append(item.id)
            return item

    source = one_shard([8] * 2000)
    source.stream = lambda shard, state=None: Watched(source.shards[shard], state)  # type: ignore[method-assign]
    world = World(source, LanePlan(1, 4, 100, 80, None), epochs=1)
    steps, state = run(world, start(world), Place(), 35)
    block = min(mark["start"] for mark in state["bookmarks"])
    assert block > 0, "the run is in a later block"
    read.clear()
    rest, _ = run(world, state, Place())
    assert min(read) == (0, 4 * block)
    assert steps + rest == whole(world)


# -- the order of rows ---------------------------------------------------------------------------------------------


def company(steps: Sequence[Step], epoch: int) -> dict[RowId, set[RowId]]:
    """For each row, those that share its micro-batch."""
    batches = [ids for step in steps if step.epoch == epoch for ids in step.ids.values()]
    return {i: set(ids) - {i} for ids in batches for i in ids}


def test_the_company_of_a_row_changes_from_epoch_to_epoch() -> None:
    steps = whole(World(one_shard(caption_lengths(3000)), LanePlan(1, 4, 16_384, 512, None)))
    first, second = company(steps, 0), company(steps, 1)
    kept = sum(len(first[i] & second[i]) for i in first) / sum(map(len, first.values()))
    assert kept < 0.25


def test_row_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epochs: int = 1) -> list[dict[int, list[RowId]]]:
        world = World(one_shard([5] * 300), dataclasses.replace(PLAN, seed=seed, tokens=50), epochs=epochs)
        return [step.ids for step in whole(world)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    twice = order(1, epochs=2)
    assert twice[: len(twice) // 2] != twice[len(twice) // 2 :]


def test_whole_shards_go_to_other_lanes_in_other_epochs() -> None:
    source = Memory([[Item((s, r), 5) for r in range(10)] for s in range(8)])
    steps = whole(World(source, LanePlan(1, 4, 100, 50, None), whole_shards=True, epochs=6))
    owners = defaultdict(set)
    for step in steps:
        for lane, ids in step.ids.items():
            for shard, _ in ids:
                owners[shard, step.epoch].add(lane)
    assert all(len(lanes) == 1 for lanes in owners.values()), "a shard belongs to one lane"
    assert all(len({min(owners[shard, epoch]) for epoch in range(6)}) > 1 for shard in range(8))


@pytest.mark.parametrize("whole_shards", [False, True])
def test_sequential_order_is_that_of_the_corpus(whole_shards: bool) -> None:
    source = Memory([[Item((s, r), 1 + (r * 7) % 11) for r in range(25)] for s in range(4)])
    plan = LanePlan(1, 4, 16, 40, None, shuffled=False)
    steps = whole(World(source, plan, whole_shards))
    for epoch in range(2):
        lanes = [[i for s in steps if s.epoch == epoch for i in s.ids.get(lane, [])] for lane in range(4)]
        if whole_shards:
            assert lanes == [[(s, r) for r in range(25)] for s in range(4)]
        else:
            assert [i for group in zip(*lanes, strict=True) for i in group] == [item.id for item in source.rows()]


@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 1000))
@settings(PROPERTY, max_examples=50)
def test_block_edges_stand_a_block_apart(block_rows: int, epoch: int, seed: int) -> None:
    plan = LanePlan(seed, 2, block_rows, 64, None)
    edges = [0]
    for _ in range(4):
        edges.append(plan.edge_after(edges[-1], epoch))
    assert 1 <= edges[1] <= block_rows
    assert all(later - earlier == block_rows for earlier, later in itertools.pairwise(edges[1:]))


def test_block_edges_move_every_epoch() -> None:
    """Rows that stood apart because of an edge stand together in another epoch."""
    steps = whole(World(one_shard([5] * 900), LanePlan(1, 2, 100, 50, None), epochs=5))
    edges = {e: {m["start"] for s in steps if s.epoch == e for m in s.bookmarks} - {0} for e in range(5)}
    assert len({min(found) for found in edges.values()}) == 5
    assert all(len({edge % 100 for edge in found}) == 1 for found in edges.values())


def test_a_corpus_of_one_block_is_one_block_in_every_epoch() -> None:
    """However the edges move: a small corpus is shuffled as a whole."""
    steps = whole(World(one_shard([5] * 400), LanePlan(1, 4, 100, 50, None), epochs=8))
    in_block = [m["start"] for s in steps for m in s.bookmarks if m["served"]]
    assert set(in_block) == {0}


# -- how evenly the work falls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_a_period_in_the_corpus_is_dealt_evenly(lanes: int) -> None:
    """Every second row is three times as long; "row i to lane i mod L" would give half of the lanes three times the
    work."""
    source = one_shard([10 if i % 2 else 30 for i in range(8000)])
    plan = LanePlan(1, lanes, 16_384, 512, None)
    work = [sum(len(e["x"]) for b in batches for e in b.examples) for batches in serve(source, plan).values()]
    assert max(work) / min(work) < 1.06


def cost(width: int, rows: int) -> float:
    return rows * width * (1 + width / 512)  # attention grows with length


def idle(served: dict[int, list[MicroBatch]], ranks: int) -> float:
    """The share of the ranks' time in which they wait for the slowest one of the step."""
    steps = max(map(len, served.values()))
    work = [[0.0] * ranks for _ in range(steps)]
    for lane, batches in served.items():
        for step, batch in enumerate(batches):
            work[step][lane % ranks] += cost(max(len(e["x"]) for e in batch.examples), len(batch.examples))
    return 1 - sum(map(sum, work)) / (ranks * sum(map(max, work)))


def padding(served: dict[int, list[MicroBatch]]) -> float:
    examples = [[len(e["x"]) for e in batch.examples] for batches in served.values() for batch in batches]
    return 1 - sum(map(sum, examples)) / sum(len(lengths) * max(lengths) for lengths in examples)


def assert_even(lengths: Sequence[int]) -> None:
    """The figures of docs/data.md for captions: 8 lanes of 512 tokens."""
    served = serve(one_shard(lengths), LanePlan(1, 8, 16_384, 512, None))
    fillers = 1 - sum(map(len, served.values())) / (8 * max(map(len, served.values())))
    assert idle(served, 2) < 0.03
    assert idle(served, 8) < 0.06
    assert fillers < 0.03
    assert padding(served) < 0.03
    widths = [[max(len(e["x"]) for e in b.examples) for b in batches] for batches in served.values()]
    shortest = min(map(len, widths))
    together = np.corrcoef(widths[0][:shortest], widths[1][:shortest])[0, 1]
    assert together > 0.95, "at one step all lanes serve similar lengths"
    in_time = np.corrcoef(widths[0], np.arange(len(widths[0])))[0, 1]
    assert abs(in_time) < 0.3, "lengths come in random order"


def test_work_is_even_on_captions() -> None:
    assert_even(caption_lengths(20_000))


@pytest.mark.corpora
def test_work_is_even_on_multi30k() -> None:
    if "RANKZERO_DATA" not in os.environ:
        pytest.skip("RANKZERO_DATA names no folder with the real corpora")
    lines = (Path(os.environ["RANKZERO_DATA"]) / "multi30k" / "train.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert_even([3 + max(len(row["de"]), len(row["en"])) // 4 for row in rows])


# -- labels --------------------------------------------------------------------------------------------------------


def labelled(labels: Sequence[str], block_rows: int, seed: int = 1, epochs: int = 1) -> World:
    lengths = caption_lengths(len(labels), seed)
    return World(one_shard(lengths, labels), LanePlan(seed, 4, block_rows, None, 16), epochs=epochs, labels=True)


@pytest.mark.parametrize("block_rows", [400, 16_384])
def test_a_corpus_sorted_by_label_is_mixed_in_every_step(block_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    """The corpus (1,600 rows in 4 lanes) fits into one block."""
    labels = ["neg"] * 800 + ["pos"] * 800
    steps = whole(labelled(labels, block_rows, epochs=10))
    for ids in (list(itertools.chain(*step.ids.values())) for step in steps):
        share = sum(labels[row] == "neg" for _, row in ids) / len(ids)
        assert abs(share - 0.5) < 0.25 or len(ids) < 48
    assert not caplog.records


def test_a_sorted_corpus_beyond_one_block_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = whole(labelled(["neg"] * 800 + ["pos"] * 800, block_rows=64))
    assert len(steps) > 10
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == 1
    assert "rankzero prepare" in messages[0]
    assert "data.block_rows" in messages[0]


@pytest.mark.parametrize("kinds", [2, 3, 20])
@pytest.mark.parametrize("block_rows", [20, 100, 300])
def test_a_mixed_corpus_is_not_warned_of(kinds: int, block_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the first or the last block of a lane holds but a few rows."""
    for seed in range(3):
        draw = random.Random(seed)
        whole(labelled([str(draw.randrange(kinds)) for _ in range(1700)], block_rows, seed, epochs=3))
    assert not caplog.records


# -- memory --------------------------------------------------------------------------------------------------------


def test_about_two_blocks_of_each_lane_are_held() -> None:
    """A stream of any length: neither raw rows nor examples pile up."""
    alive, most = Counter[str](), Counter[str]()

    def counted(base: Callable[..., Any], kind: str) -> type:
        class Counted(base):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                alive[kind] += 1
                most[kind] = max(most[kind], alive[kind])

            def __del__(self) -> None:
                alive[kind] -= 1

        return Counted

    row, example = counted(Item, "rows"), counted(dict, "examples")

    class Fresh(MemoryStream):
        def __next__(self) -> Item:
            return row(*dataclasses.astuple(super().__next__()))  # type: ignore[no-any-return]

    source = one_shard(caption_lengths(8000))
    source.stream = lambda shard, state=None: Fresh(source.shards[shard], state)  # type: ignore[method-assign]
    plan = LanePlan(1, 4, 200, 128, None)
    server = LaneServer(source, plan, lambda rows: [(example(x=[1] * r.length), r.length) for r in rows])
    streams = server.epoch(range(4), [Bookmark()] * 4)
    served = 0
    while step := [part for stream in streams.values() if (part := next(stream, None)) is not None]:
        served += sum(len(part.ids) for part in step)
    assert served == 8000
    assert most["rows"] <= 2 * 4 * 200
    assert most["examples"] <= 1.5 * 4 * 200


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
