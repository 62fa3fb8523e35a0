"""Mixed corpora at up to 4,096 ranks, simulated: exact proportions, rows once a pass, the same after resumes."""

from __future__ import annotations

import pytest

from benchmarks.simulated_lanes import Corpus, MixedWorld, drawn, mixed_epoch, same_after_resumes
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.quotas import Quotas


def world_of(lanes: int, rows: int, block_rows: int, *, whole: bool = True) -> MixedWorld:
    """A large corpus that ends the epoch, one that is repeated, and one that is not used up."""
    sizes, weights = [rows * lanes, rows * lanes // 8, rows * lanes], [6, 3, 1]
    shards = [lanes if whole else 1, 1, 1]
    corpora = [Corpus(drawn("captions", n, seed), s) for seed, (n, s) in enumerate(zip(sizes, shards, strict=True))]
    quotas = Quotas(["large", "again", "rest"], weights, [False, True, False], False, None, sizes[0] * 10 // 6)
    return MixedWorld(corpora, quotas, LanePlan(1, lanes, block_rows, 256, None, 4))


@pytest.mark.parametrize("lanes", [256, pytest.param(4096, marks=pytest.mark.slow)])
def test_every_block_of_every_lane_has_its_proportions(lanes: int) -> None:
    world = world_of(lanes, 32, 20)
    epoch = mixed_epoch(world, {lane: Bookmark() for lane in range(lanes)})
    assert epoch.problems == []
    large, again, rest = epoch.used
    assert set(large) == {1}, "the corpus that ends the epoch is used once"
    assert again.min() >= 3
    assert again.max() <= 5, "32 rows of a lane are 6 of 10: it takes 16 of this one, which has 4 for each"
    assert rest.max() == 1
    assert rest.sum() == pytest.approx(large.sum() / 6, abs=lanes)
    second = mixed_epoch(world, epoch.marks)
    assert set(second.used[0]) == {1}
    assert (rest + second.used[2]).max() == 1, "it is read on"


@pytest.mark.parametrize("whole", [True, False], ids=["whole-shards", "one-file"])
@pytest.mark.parametrize("lanes", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_other_numbers_of_ranks_resume_with_the_same_rows(lanes: int, whole: bool) -> None:
    """As many ranks as lanes, half of them, and a number that does not divide the lanes."""
    world = world_of(lanes, 48, 16, whole=whole)
    epoch = mixed_epoch(world, {lane: Bookmark() for lane in range(lanes)})
    found = same_after_resumes(world, epoch, (lanes, lanes // 2, 12), None if lanes == 64 else 4)
    assert found["different"] == 0
    assert found["micro_batches_checked"] > 100


def test_a_resume_that_serves_other_rows_would_be_seen() -> None:
    world = world_of(16, 48, 16)
    epoch = mixed_epoch(world, {lane: Bookmark() for lane in range(16)})
    epoch.digests[5] = epoch.digests[6][: len(epoch.digests[5])] + epoch.digests[5][len(epoch.digests[6]) :]
    assert same_after_resumes(world, epoch, (16, 6))["different"] > 0


def test_a_lane_with_other_proportions_would_be_seen() -> None:
    world = world_of(16, 48, 16)
    server = world.server()
    mixture = server._mixture
    lane_weights = type(mixture).lane_weights

    class Skewed(type(mixture)):  # type: ignore[misc]
        def lane_weights(self, lane: int, *others: object) -> tuple[int, ...]:
            return (5, 4, 1) if lane == 7 else lane_weights(self, lane, *others)

    object.__setattr__(mixture, "__class__", Skewed)
    skewed = MixedWorld(world.corpora, world.quotas, world.plan)
    object.__setattr__(skewed, "server", lambda: server)
    found = mixed_epoch(skewed, {lane: Bookmark() for lane in range(16)}).problems
    assert found
    assert all("lane 7" in problem for problem in found)
