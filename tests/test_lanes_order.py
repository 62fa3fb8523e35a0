"""The order in which lanes serve rows: mixing, equal work, labels, bounded memory."""

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
from lane_helpers import (
    PROPERTY,
    Item,
    LaneSetup,
    Memory,
    MemoryStream,
    Step,
    caption_lengths,
    encode,
    one_shard,
    uninterrupted,
)

from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import LaneServer, MicroBatch, RowId

PLAN = LanePlan(seed=1, lanes=4, block_rows=16_384, tokens=512, rows=None)


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


# -- the order of rows ---------------------------------------------------------------------------------------------


def micro_batch_mates(steps: Sequence[Step], epoch: int) -> dict[RowId, set[RowId]]:
    """For each row, those that share its micro-batch."""
    batches = [ids for step in steps if step.epoch == epoch for ids in step.ids.values()]
    return {i: set(ids) - {i} for ids in batches for i in ids}


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("lengths", [[5] * 900, caption_lengths(3000)], ids=["one-length", "captions"])
def test_the_company_of_a_row_changes_from_epoch_to_epoch(lanes: int, lengths: list[int]) -> None:
    """Rows of a similar length meet again now and then; nothing else keeps them together."""
    steps = uninterrupted(LaneSetup(one_shard(lengths), LanePlan(1, lanes, 16_384, 256, None)))
    first, second = micro_batch_mates(steps, 0), micro_batch_mates(steps, 1)
    kept = sum(len(first[i] & second[i]) for i in first) / sum(map(len, first.values()))
    assert kept < 0.25


def test_row_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epochs: int = 1) -> list[dict[int, list[RowId]]]:
        world = LaneSetup(one_shard([5] * 300), dataclasses.replace(PLAN, seed=seed, tokens=50), epochs=epochs)
        return [step.ids for step in uninterrupted(world)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    rows = [{i for step in order(seed) for i in step.get(0, [])} for seed in (1, 2)]
    assert len(rows[0] & rows[1]) < 50, "a lane of 75 rows gets others"
    twice = order(1, epochs=2)
    assert twice[: len(twice) // 2] != twice[len(twice) // 2 :]


def test_whole_shards_change_lanes_between_epochs() -> None:
    source = Memory([[Item((s, r), 5) for r in range(10)] for s in range(8)])
    steps = uninterrupted(LaneSetup(source, LanePlan(1, 4, 100, 50, None), whole_shards=True, epochs=6))
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
    steps = uninterrupted(LaneSetup(source, plan, whole_shards))
    for epoch in range(2):
        lanes = [[i for s in steps if s.epoch == epoch for i in s.ids.get(lane, [])] for lane in range(4)]
        if whole_shards:
            assert lanes == [[(s, r) for r in range(25)] for s in range(4)]
        else:
            assert [i for group in zip(*lanes, strict=True) for i in group] == [item.id for item in source.rows()]


@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 1000))
@settings(PROPERTY, max_examples=50)
def test_block_edges_are_one_block_apart(block_rows: int, epoch: int, seed: int) -> None:
    plan = LanePlan(seed, 2, block_rows, 64, None)
    edges = [0]
    for _ in range(4):
        edges.append(plan.edge_after(edges[-1], epoch))
    assert 1 <= edges[1] <= block_rows
    assert all(later - earlier == block_rows for earlier, later in itertools.pairwise(edges[1:]))


def test_block_edges_move_every_epoch() -> None:
    """Rows that stood apart because of an edge stand together in another epoch."""
    steps = uninterrupted(LaneSetup(one_shard([5] * 900), LanePlan(1, 2, 100, 50, None), epochs=5))
    edges = {e: {m["start"] for s in steps if s.epoch == e for m in s.bookmarks} - {0} for e in range(5)}
    assert len({min(found) for found in edges.values()}) == 5
    assert all(len({edge % 100 for edge in found}) == 1 for found in edges.values())


def test_a_corpus_of_one_block_is_one_block_in_every_epoch() -> None:
    """However the edges move: a small corpus is shuffled as a whole."""
    steps = uninterrupted(LaneSetup(one_shard([5] * 400), LanePlan(1, 4, 100, 50, None), epochs=8))
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
    """The case of captions: 8 lanes of 512 tokens."""
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


def labelled(labels: Sequence[str], block_rows: int, seed: int = 1, epochs: int = 1) -> LaneSetup:
    lengths = caption_lengths(len(labels), seed)
    return LaneSetup(one_shard(lengths, labels), LanePlan(seed, 4, block_rows, None, 16), epochs=epochs, labels=True)


@pytest.mark.parametrize("block_rows", [400, 16_384])
def test_a_corpus_sorted_by_label_is_mixed_in_every_step(block_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    """The corpus (1,600 rows in 4 lanes) fits into one block."""
    labels = ["neg"] * 800 + ["pos"] * 800
    steps = uninterrupted(labelled(labels, block_rows, epochs=10))
    for ids in (list(itertools.chain(*step.ids.values())) for step in steps):
        share = sum(labels[row] == "neg" for _, row in ids) / len(ids)
        assert abs(share - 0.5) < 0.25 or len(ids) < 48
    assert not caplog.records


def test_a_sorted_corpus_beyond_one_block_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = uninterrupted(labelled(["neg"] * 800 + ["pos"] * 800, block_rows=64))
    assert len(steps) > 10
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == 1
    assert "rankzero prepare" in messages[0]
    assert "data.block_rows" in messages[0]
    later = labelled(["neg"] * 800 + ["pos"] * 800, block_rows=64).server()  # of a loader process of the second epoch
    caplog.clear()
    assert all(len(list(lane)) > 10 for lane in later.epoch(range(4), [Bookmark(1)] * 4).values())
    assert not caplog.records


def test_a_corpus_of_many_labels_that_is_sorted_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Each of 50 labels is a fifth of a block and in no other one."""
    uninterrupted(labelled([f"{i // 100:02}" for i in range(5000)], block_rows=125))
    [message] = [r.getMessage() for r in caplog.records]
    assert "of a block after" in message


@pytest.mark.parametrize("kinds", [2, 3, 20])
@pytest.mark.parametrize("block_rows", [20, 100, 300])
def test_a_mixed_corpus_is_not_warned_of(kinds: int, block_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the first or the last block of a lane holds but a few rows."""
    for seed in range(3):
        draw = random.Random(seed)
        uninterrupted(labelled([str(draw.randrange(kinds)) for _ in range(1700)], block_rows, seed, epochs=3))
    assert not caplog.records


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [range(4), [2]], ids=["all-lanes", "one-of-four"])
def test_about_two_blocks_of_each_own_lane_are_held(lanes: Sequence[int]) -> None:
    """A stream of any length: neither raw rows nor examples pile up, and rows of other ranks are not kept."""
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
    streams = server.epoch(lanes, [Bookmark()] * len(lanes))
    served = 0
    while step := [part for stream in streams.values() if (part := next(stream, None)) is not None]:
        served += sum(len(part.ids) for part in step)
    assert served == 2000 * len(lanes)
    assert most["rows"] <= 2 * 200 * len(lanes)
    assert most["examples"] <= 1.5 * 200 * len(lanes)
