"""Lanes at 1,024 ranks, simulated: every row once, equal work, the same rows after a resume, bounded memory."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulated_lanes import (
    Corpus,
    Epoch,
    World,
    bookmarks,
    drawn,
    epoch_of,
    one_rank,
    same_after_resumes,
)
from trainer.data.dealer import Dealer
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.engine.progress import Progress

RANKS = 1024
ROWS = 800 * RANKS  # fewer rows a lane differ by more than 5% by chance alone
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "scale.json"


def captions(rows: int, shards: int, lanes: int = RANKS, block_rows: int = 16_384) -> World:
    return World(Corpus(drawn("captions", rows), shards), LanePlan(1, lanes, block_rows, 256, None, 4))


@pytest.fixture(autouse=True, scope="module")
def without_collector() -> Iterator[None]:
    """Rows by the hundred thousand, none of them in a cycle: the collector would be half of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def prepared() -> tuple[World, Epoch]:
    """A shard for each of 1,024 lanes, as `prepare` writes them, and the epoch of all lanes."""
    world = captions(ROWS, RANKS)
    assert world.whole_shards
    return world, epoch_of(world)


def test_every_row_is_served_once_and_all_ranks_work_alike(prepared: tuple[World, Epoch]) -> None:
    _, epoch = prepared
    assert (epoch.lost, epoch.repeated) == (0, 0)
    found = epoch.evenness(RANKS)
    assert found["most_work_over_mean"] < 1.05
    assert found["idle"] < 0.08, "55 steps an epoch: in the last two some of the lanes are done"
    assert found["fillers"] < 0.05
    assert epoch.evenness(RANKS // 4)["idle"] < found["idle"], "a rank of several lanes evens them out"


def test_one_file_is_dealt_to_1024_lanes_with_each_row_once_and_evenly() -> None:
    """Every second row is 37% longer: "row i to lane i mod L" would show here."""
    world = captions(150 * RANKS, 1)
    assert not world.whole_shards
    epoch = epoch_of(world)
    assert (epoch.lost, epoch.repeated) == (0, 0)
    assert epoch.evenness(RANKS // 8)["most_work_over_mean"] < 1.05


@pytest.mark.parametrize(("shards", "sample"), [(128, None), (1, 2)], ids=["whole-shards", "one-file"])
def test_other_numbers_of_ranks_resume_with_the_same_rows(shards: int, sample: int | None) -> None:
    """128, then 64, then 12 ranks, which do not divide the lanes; blocks of 64 rows, so bookmarks stand in many."""
    world = captions(500 * 128 if shards > 1 else 200 * 128, shards, lanes=128, block_rows=64)
    assert world.whole_shards == (shards > 1)
    found = same_after_resumes(world, epoch_of(world), (128, 64, 12), sample)
    assert found["different"] == 0
    assert found["micro_batches_checked"] > 100
    assert any(mark["start"] for mark in found["state"]["bookmarks"])


def test_a_resume_that_serves_other_rows_would_be_seen() -> None:
    world = captions(500 * 16, 16, lanes=16, block_rows=64)
    epoch = epoch_of(world)
    epoch.digests[5] = epoch.digests[6][: len(epoch.digests[5])] + epoch.digests[5][len(epoch.digests[6]) :]
    assert same_after_resumes(world, epoch, (16, 6))["different"] > 0


def test_a_rank_of_1024_reads_its_own_shard_only(prepared: tuple[World, Epoch]) -> None:
    world, _ = prepared
    began = time.perf_counter()
    found = one_rank(world, RANKS - 1, RANKS)
    assert found["rows_read"] == ROWS / RANKS
    assert time.perf_counter() - began < 5, "a rank's epoch of 800 rows takes a hundredth of a second"


def test_a_rank_of_1024_without_shards_reads_the_full_file() -> None:
    """Why a corpus for many ranks is prepared: the first step waits for a block of all lanes."""
    world = captions(64 * RANKS, 1, block_rows=16)
    found = one_rank(world, 0, RANKS)
    assert found["share_of_corpus_read"] == 1
    assert 1 < found["rows_read_before_first_step"] / RANKS <= 17


@pytest.mark.parametrize(
    ("lanes", "shards", "sizes"), [(RANKS, 1, (24, 48)), (64, 64, (500, 1500))], ids=["one-file", "whole-shards"]
)
def test_memory_of_a_rank_does_not_grow_with_the_corpus(lanes: int, shards: int, sizes: tuple[int, int]) -> None:
    small, large = (captions(per_lane * lanes, shards, lanes, 16) for per_lane in sizes)
    peaks = [one_rank(world, 7, lanes, memory=True)["peak_bytes"] for world in (small, large)]
    positions = 400 * sizes[1] / 16  # bytes: one of the stream is kept for each block
    assert peaks[1] < 1.1 * peaks[0] + positions
    assert peaks[1] < 8e6


@pytest.mark.parametrize("lanes", [8, 1024, 10_000])
def test_the_orders_of_dealing_are_the_same_however_many_are_drawn_at_once(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of old runs depend on them."""

    def order(groups: tuple[int, ...]) -> list[list[int]]:
        dealer = Dealer(Corpus(drawn("captions", 10), 1), LanePlan(3, lanes, 64, 512, None), 1, [0], False, Bookmark(1))
        found = []
        for dealer.reached in groups:
            found.append([dealer._lane(place) for place in range(lanes)])
        return found

    as_shipped = order((0, 1, 700))
    assert all(sorted(lanes_of) == list(range(lanes)) for lanes_of in as_shipped)
    monkeypatch.setattr("trainer.data.dealer.DRAWN", 5 * lanes)
    assert order((0, 1, 700)) == as_shipped


def test_bookmarks_of_1024_lanes_are_small() -> None:
    marks = {lane: Bookmark(3, 409_600, 12_345, 67, (12, {"row": 40_960, "offsets": [9**9]})) for lane in range(RANKS)}
    weights = bookmarks(json.loads(json.dumps(Progress.start(RANKS).to_json(marks))), RANKS)
    assert weights["bytes_a_lane"] < 300
    assert weights["gathered_bytes"] < 400 * RANKS
    assert weights["seconds_to_read"] < 1


def test_work_is_counted_as_padded_and_idle_as_waiting() -> None:
    """Two ranks, two steps: 4 and 2, then 3 and a filler."""
    epoch = Epoch(np.array([[4, 2], [3, 0]]), [[], []], 0, 0, 9, 0.0)
    assert epoch.evenness(2) == {
        "steps": 2, "padding": 0.0, "most_work_over_mean": 7 / 4.5, "idle": 1 - 9 / 14, "fillers": 0.25,
    }  # fmt: skip
    assert epoch.evenness(1)["idle"] == 0


def test_the_published_figures_are_reached() -> None:
    """benchmarks/results/scale.json, from which docs/explanation/scale.md quotes."""
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    large = [case for case in report["proofs"] if case["ranks"] >= 1024]
    assert {case["lanes"] for case in large} == {1024, 2048}
    assert {case["lengths"] for case in large} == {"log-normal", "periodic"}
    assert all(case["most_work_over_mean"] < 1.05 for case in large)
    assert not any(case["lost"] or case["repeated"] for case in report["proofs"] + report["rows_per_lane"])
    assert not any(case["different"] for case in report["resumes"])
