"""From lanes to micro-batches in real loader processes: the same steps, clear errors, no hang."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_helpers import (
    PROPERTY,
    Item,
    LaneSetup,
    Memory,
    Place,
    Step,
    caption_lengths,
    collate,
    count,
    encode,
    epoch_of,
    one_shard,
    run,
    simulated_processes,
    start,
    uninterrupted,
)
from torch.utils.data._utils.pin_memory import pin_memory

from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import LaneServer
from trainer.data.loader import Loaded, load_epoch
from trainer.data_parallel import DataParallel
from trainer.engine.loop import Loop
from trainer.engine.progress import Progress
from trainer.errors import DataError, Preempted, UsageError
from trainer.recipe.sections import OptimConfig

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores

UNEVEN = LaneSetup(  # 5 lanes that end at different steps
    Memory([[Item((s, r), 1 + (s * r) % 20) for r in range(30 + 25 * s)] for s in range(5)]),
    LanePlan(1, 5, 50, 40, 6, 4),
    whole_shards=True,
)


def loaded_epoch(world: LaneSetup, workers: int, prefetch: int = 2, encoder: Any = encode) -> Iterator[Any]:
    server = LaneServer(world.source, world.plan, encoder, None, world.whole_shards)
    groups = [[lane] for lane in range(world.plan.lanes)]
    marks = {lane: Bookmark() for lane in range(world.plan.lanes)}
    return load_epoch(
        server, collate, count, groups, marks, inputs=["x"], workers=workers, prefetch=prefetch, pin_memory=False
    )


def children() -> list[Any]:
    return multiprocessing.active_children()


# -- lanes to ranks ------------------------------------------------------------------------------------------------


@settings(PROPERTY, max_examples=100)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5))
def test_every_lane_has_one_owner(lanes: int, world: int, fuse: int) -> None:
    owned = [DataParallel(rank, world).lane_groups(lanes, fuse) for rank in range(world)]
    flat = [[lane for group in groups for lane in group] for groups in owned]
    assert sorted(lane for own in flat for lane in own) == list(range(lanes))
    assert max(map(len, flat)) - min(map(len, flat)) <= 1
    assert all(lane % world == rank for rank, own in enumerate(flat) for lane in own)
    assert all(1 <= len(group) <= fuse for groups in owned for group in groups)


def test_fused_lanes_are_one_forward_of_the_same_rows() -> None:
    world = LaneSetup(one_shard(caption_lengths(200)), LanePlan(1, 4, 1000, 128, None), epochs=1)
    marks = {lane: Bookmark() for lane in range(4)}
    apart = list(epoch_of(world, [[0], [2]], marks, 0))
    fused = list(epoch_of(world, [[0, 2]], marks, 0))
    assert len(apart) == len(fused)
    for (first, second), (both,) in zip(apart, fused, strict=True):
        parts = [part for part in (first, second) if part]
        assert both.ids == {lane: ids for part in parts for lane, ids in part.ids.items()}
        assert both.lanes == {lane: mark for part in parts for lane, mark in part.lanes.items()}
        assert both.rows == sum(part.rows for part in parts) == len(both.inputs["x"])
        assert both.tokens == sum(part.tokens for part in parts)
        assert both.padded == both.inputs["x"].numel() >= sum(part.padded for part in parts)


class Threads:
    """A runtime whose ranks are threads: `sum` waits for all of them."""

    def __init__(self, ranks: int) -> None:
        self._size, self.device = ranks, torch.device("cpu")
        self.stop = SimpleNamespace(received=None)
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._values: dict[int, list[int]] = {}
        self._local = threading.local()

    @property
    def data_parallel(self) -> DataParallel:
        return DataParallel(self._local.rank, self._size)

    @property
    def rank(self) -> int:
        rank: int = self._local.rank
        return rank

    @property
    def world(self) -> int:
        return self._size

    @property
    def main(self) -> bool:
        return self.rank == 0

    engine = SimpleNamespace(communication=lambda: None)

    def heartbeat(self, where: str, step: int | None = None) -> None:
        pass  # no watchdog

    def sum(self, values: list[Any], dtype: torch.dtype = torch.int64) -> list[Any]:
        self._values[self._local.rank] = values
        self._barrier.wait()
        total = [sum(column) for column in zip(*self._values.values(), strict=True)]
        self._barrier.wait()
        return total

    def start_sum(self, values: list[Any], dtype: torch.dtype = torch.int64) -> Callable[[], list[Any]]:
        return lambda: self.sum(values, dtype)

    def stopped(self, where: str) -> Preempted:
        return Preempted(where)

    def run(self, work: Callable[[], Any]) -> list[Any]:
        results: dict[int, Any] = {}

        def enter(rank: int) -> None:
            self._local.rank = rank
            try:
                results[rank] = work()
            except BaseException:
                self._barrier.abort()
                raise

        threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(self._size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(self._size)]


def loop_of(runtime: Threads, made: Callable[[list[Loaded | None], int], None], **settings_: Any) -> Any:
    """The real loop over the lanes of UNEVEN, its model left out; `made` is called for each step."""
    defaults = {"fuse_lanes": 1, "epochs": 2, "max_steps": None, "log_every": 10**9, "callbacks": [], "ledger": False}
    every = {"eval_every": 10**9, "save_every": 10**9}
    recipe = SimpleNamespace(
        data=SimpleNamespace(lanes=5, workers=0, prefetch=2, mix=[]), seed=1,
        loop=SimpleNamespace(**{**defaults, **every, **settings_}), optim=OptimConfig(schedule="constant", lr=1.0),
    )  # fmt: skip
    task = SimpleNamespace(
        recipe=recipe,
        training_batch=collate,
        tokens=count,
        inputs=("x",),
        corrupt=lambda examples, *_: examples,
        targets=lambda batch: len(batch["x"]),
    )

    def stepper(batches: list[Loaded | None], number: int, totals: Any, multiplier: Any, before_update: Any) -> Any:
        made(batches, number)
        return SimpleNamespace(finite=True, loss_sum=torch.zeros(()), grad_norm=0.0, corpora=None)

    stepper.shapes = Counter()  # type: ignore[attr-defined]
    stepper.lane_memory = SimpleNamespace(commit=lambda: None, enabled=False)  # type: ignore[attr-defined]
    return Loop(
        runtime, task, None, SimpleNamespace(unchecked=()), UNEVEN.server(),  # type: ignore[arg-type]
        stepper, SimpleNamespace(after_step=lambda step: None),
        Progress.start(5), SimpleNamespace(path=None),
        SimpleNamespace(step=lambda *_: None, logged=lambda *_: None), 400,
    )  # fmt: skip


def test_all_ranks_of_the_loop_step_equally_often() -> None:
    """Ranks whose lanes are done go on with nothing until the last lane is done."""
    runtime, world = Threads(3), UNEVEN

    def rank() -> list[Any]:
        seen: list[Any] = []
        loop = loop_of(runtime, lambda batches, _: seen.append([loaded.ids if loaded else {} for loaded in batches]))
        while not loop.finished():
            loop._epoch(None)
        return seen

    ranks = runtime.run(rank)
    assert len({len(seen) for seen in ranks}) == 1
    together = [
        {k: v for part in step for group in part for k, v in group.items()} for step in zip(*ranks, strict=True)
    ]
    assert together == [step.ids for step in uninterrupted(world)]
    assert any({} in part for seen in ranks for part in seen), "some lanes end early"


def test_ranks_agree_on_a_step_while_the_one_before_it_runs() -> None:
    """But never across an evaluation, a save or the end of an epoch; and a stop is seen one step later at most."""
    runtime = Threads(1)

    def rank() -> list[str]:
        events: list[str] = []

        def made(batches: list[Loaded | None], number: int) -> None:
            events.append(f"step {number}")
            assert loop.progress.step == number - 1, "what is loaded ahead does not count"
            if number == last:
                runtime.stop.received = "SIGTERM"

        loop = loop_of(runtime, made, save_every=3)
        start_sum = runtime.start_sum

        def noted(*arguments: Any) -> Any:
            events.append("agree")
            return start_sum(*arguments)

        runtime.start_sum = noted  # type: ignore[method-assign]
        loop._evaluate_and_save = lambda evaluate_now: events.append(f"save {loop.progress.step}")
        ends = [step.epoch for step in uninterrupted(UNEVEN)].count(0)
        last = ends + 6 - ends % 3 + 1  # the step after a save, in the second epoch
        loop._epoch(None)
        events.append("epoch")
        with pytest.raises(Preempted, match=f"after step {last + 1}"):
            loop._epoch(None)
        return [*events, str(ends)]

    *events, ends = runtime.run(rank)[0]
    assert events[:8] == ["agree", "agree", "step 1", "agree", "step 2", "step 3", "save 3", "agree"]
    agreed = events[: events.index("epoch")].count("agree")
    assert agreed == int(ends) + 1, "the last one finds that no lane has rows"
    assert events[-4:] == ["agree", events[-3], "agree", events[-1]]
    assert [event[:4] for event in (events[-3], events[-1])] == ["step", "step"]


# -- loader processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_loader_processes_do_not_change_the_steps(workers: int) -> None:
    """Two resumes, in the first and in the second epoch; the processes run ahead of what is served."""
    expected = uninterrupted(UNEVEN)
    epoch_ends = sum(step.epoch == 0 for step in expected)
    found: list[Step] = []
    state = start(UNEVEN)
    for steps in (7, epoch_ends - 3, None):
        part, state = run(UNEVEN, state, Place(ranks=1, workers=workers), steps)
        found += part
    assert found == expected


def test_simulated_processes_are_like_real_ones() -> None:
    """What the property tests rely on: the same steps, groups and None where a group is done."""

    def shape(batches: Iterator[list[Loaded | None]]) -> list[Any]:
        return [[loaded and loaded.ids for loaded in step] for step in batches]

    real = shape(loaded_epoch(UNEVEN, 3))
    with simulated_processes():
        assert shape(loaded_epoch(UNEVEN, 3)) == real
    assert shape(loaded_epoch(UNEVEN, 0)) == real
    assert None in real[-1]


def test_tensors_of_loader_processes_are_the_same() -> None:
    for ours, theirs in zip(loaded_epoch(UNEVEN, 0), loaded_epoch(UNEVEN, 2), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.equal(a.inputs["x"], b.inputs["x"])
                assert a.inputs["x"].dtype == b.inputs["x"].dtype
                assert (a.lanes, a.ids, a.rows, a.tokens, a.padded) == (b.lanes, b.ids, b.rows, b.tokens, b.padded)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_unchanged(workers: int) -> None:
    """A draw from it would shift dropout."""
    before = torch.get_rng_state()
    for _ in zip(range(3), loaded_epoch(UNEVEN, workers), strict=False):
        pass
    assert torch.equal(before, torch.get_rng_state())


def failing(rows: list[Item]) -> Any:
    if any(row.id == (3, 70) for row in rows):
        raise DataError('train.jsonl:70 (row 71), column "en": is null')
    return encode(rows)


def until_error(batches: Iterator[Any]) -> tuple[list[Any], type, str]:
    """The steps before an error, and what it is; a kept error would keep the loader processes alive."""
    seen = []
    try:
        for step in batches:
            seen.append([loaded and loaded.ids for loaded in step])
    except (DataError, KeyError) as error:
        return seen, type(error), str(error)
    raise AssertionError("no error came")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_of_a_loader_process_is_the_users_error(workers: int) -> None:
    """The message unchanged, without a traceback of DataLoader in it; after the steps before it."""
    seen, kind, message = until_error(loaded_epoch(UNEVEN, workers, encoder=failing))
    assert not children(), "freed with the error, not at some later garbage collection"
    assert kind is DataError
    assert message == 'train.jsonl:70 (row 71), column "en": is null'
    assert seen
    assert seen == [[loaded and loaded.ids for loaded in step] for step in loaded_epoch(UNEVEN, 0)][: len(seen)]


def test_our_own_mistake_in_a_loader_process_keeps_its_traceback() -> None:
    def broken(rows: list[Item]) -> Any:
        raise KeyError("src")

    _, kind, message = until_error(loaded_epoch(UNEVEN, 2, encoder=broken))
    assert kind is KeyError
    assert "in broken" in message
    for child in children():  # torch lets error and frame hold each other, and its own end would take 10 s
        child.terminate()


@pytest.mark.timeout(60)
def test_a_killed_loader_process_is_an_error_and_no_hang() -> None:
    world = LaneSetup(one_shard([5] * 4000), LanePlan(1, 2, 50, 20, None))
    batches = loaded_epoch(world, 2)
    next(batches)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # noqa: PT012 - torch raises in its SIGCHLD handler
        os.kill(children()[0].pid, signal.SIGKILL)
        for _ in batches:
            pass
    assert time.monotonic() - began < 30


def test_a_stop_signal_to_all_processes_is_left_to_the_rank() -> None:
    """An elastic agent signals the whole group: the rank must still get its rows, finish its step and save."""
    world = LaneSetup(one_shard([5] * 1000), LanePlan(1, 2, 50, 20, None))
    expected = [[loaded and loaded.ids for loaded in step] for step in loaded_epoch(world, 0)]
    batches = loaded_epoch(world, 2)
    found = [[loaded and loaded.ids for loaded in next(batches)]]
    for name in ("TERM", "INT", "USR1", "HUP"):  # from another process than the rank
        subprocess.run(["kill", f"-{name}", *[str(child.pid) for child in children()]], check=True)
    time.sleep(0.2)
    assert len(children()) == 2
    found += [[loaded and loaded.ids for loaded in step] for step in batches]
    assert found == expected


def test_a_full_dev_shm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing, "Queue", full)
    world = LaneSetup(one_shard([5] * 100), LanePlan(1, 2, 50, 20, None))
    assert list(loaded_epoch(world, 0)), "needs none"
    with pytest.raises(UsageError, match=r"data.workers=2: .*No space left on device.*/dev/shm.*data.workers=0"):
        list(loaded_epoch(world, 2))


def test_the_rank_itself_can_end_its_loader_processes() -> None:
    world = LaneSetup(one_shard([5] * 4000), LanePlan(1, 2, 50, 20, None))
    batches = loaded_epoch(world, 2)
    next(batches)
    process = children()[0]
    process.terminate()
    process.join(20)
    left = process.exitcode
    process.kill()
    batches.close()  # type: ignore[attr-defined]
    assert left == 0


def test_loader_processes_end_with_a_step_in_the_middle_of_an_epoch() -> None:
    batches = loaded_epoch(LaneSetup(one_shard([5] * 4000), LanePlan(1, 2, 50, 20, None)), 2)
    next(batches)
    assert len(children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not children()


def test_batches_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DataLoader asks what it does not know itself to pin: without this, `pin_memory` would silently do nothing."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    (loaded, *_) = next(loaded_epoch(UNEVEN, 0))
    _, found = pin_memory((0, {0: loaded}))
    assert pinned[0] is loaded.inputs["x"]
    assert found[0].inputs["x"] is not loaded.inputs["x"]
    assert found[0].ids == loaded.ids
