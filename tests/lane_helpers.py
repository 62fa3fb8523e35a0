"""A corpus in memory, and runs over it on simulated ranks and loader processes: what the tests of lanes share."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat, zip_longest
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from trainer.data import loader
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import Example, LaneServer, RowId
from trainer.data.loader import Batch, load_epoch
from trainer.data_parallel import DataParallel
from trainer.engine.progress import Progress

settings.register_profile(
    "lanes", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
PROPERTY = settings.get_profile("lanes")


@dataclass(frozen=True)
class Item:
    """A raw row: all that lanes know of it is its id, and what `encode` and `label` make of it."""

    id: RowId
    length: int
    label: str | None = None
    bad: bool = False


class MemoryStream:
    def __init__(self, rows: Sequence[Item], state: Any = None) -> None:
        self._rows, self._row = rows, state["row"] if state else 0

    def state(self) -> dict[str, Any]:
        return {"row": self._row, "offsets": [10 * self._row]}

    def __iter__(self) -> MemoryStream:
        return self

    def __next__(self) -> Item:
        if self._row >= len(self._rows):
            raise StopIteration
        self._row += 1
        return self._rows[self._row - 1]


class Memory:
    """A source whose shards are lists."""

    def __init__(self, shards: Sequence[Sequence[Item]]) -> None:
        self.shards = shards

    def stream(self, shard: int, state: Any = None) -> MemoryStream:
        return MemoryStream(self.shards[shard], state)

    def rows(self) -> list[Item]:
        return [item for shard in self.shards for item in shard]


def one_shard(lengths: Sequence[int], labels: Sequence[str] | None = None) -> Memory:
    return Memory([[Item((0, i), n, labels[i] if labels else None) for i, n in enumerate(lengths)]])


def encode(rows: Sequence[Item]) -> list[tuple[Example, int] | None]:
    return [None if row.bad else ({"x": [1] * row.length}, row.length) for row in rows]


def collate(examples: Sequence[Example]) -> Batch:
    return {"x": torch.zeros(len(examples), max(map(count, examples)))}


def count(example: Example) -> int:
    return len(example["x"])


@dataclass(frozen=True)
class LaneSetup:
    """What fixes the steps of a run: a corpus and a plan."""

    source: Memory
    plan: LanePlan
    whole_shards: bool = False
    epochs: int = 2
    labels: bool = False

    def server(self) -> LaneServer:
        label = (lambda row: row.label) if self.labels else None
        return LaneServer(self.source, self.plan, encode, label, self.whole_shards)


@dataclass(frozen=True)
class Step:
    """Rows of each lane that has any, in order, and the bookmarks of all lanes afterwards, as a checkpoint has them."""

    epoch: int
    ids: dict[int, list[RowId]]
    bookmarks: Any = field(repr=False)


@dataclass(frozen=True)
class Place:
    """Where a part of a run happens: nothing of it may change a step."""

    ranks: int = 1
    workers: int = 0
    fuse: int = 1


def start(world: LaneSetup) -> Any:
    """The state of a run that has not begun, as JSON."""
    progress = Progress.start(world.plan.lanes)
    return as_json(progress.to_json(progress.marks))


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def run(world: LaneSetup, state: Any, place: Place, steps: int | None = None) -> tuple[list[Step], Any]:
    """As the loop does it: steps of all ranks side by side from `state` on, at most `steps`; the state afterwards.

    A rank has only what its own part of `state` and its own loader give it.
    """
    ranks = [Progress.from_json(as_json(state)) for _ in range(place.ranks)]
    groups = [DataParallel(rank, place.ranks).lane_groups(world.plan.lanes, place.fuse) for rank in range(place.ranks)]
    owner = {lane: rank for rank, own in enumerate(groups) for group in own for lane in group}
    done: list[Step] = []

    def marks() -> dict[int, Bookmark]:
        return {lane: ranks[rank].marks[lane] for lane, rank in owner.items()}

    while ranks[0].epoch < world.epochs:
        streams = [
            chain(epoch_of(world, own, rank.marks, place.workers), repeat([None] * len(own)))
            for own, rank in zip(groups, ranks, strict=True)
        ]
        for batches in zip(*streams, strict=True):
            ids: dict[int, list[RowId]] = {}
            for rank, part in zip(ranks, batches, strict=True):
                for loaded in filter(None, part):
                    ids |= loaded.ids
                    rank.marks.update(loaded.lanes)
            if not ids:
                break
            for rank in ranks:
                rank.step += 1
            done.append(Step(ranks[0].epoch, ids, as_json([vars(mark) for _, mark in sorted(marks().items())])))
            if len(done) == steps:
                return done, as_json(ranks[0].to_json(marks()))
        for rank in ranks:
            rank.next_epoch()
    return done, as_json(ranks[0].to_json(marks()))


def uninterrupted(world: LaneSetup) -> list[Step]:
    """The steps of an uninterrupted run on one rank."""
    return run(world, start(world), Place())[0]


def epoch_of(world: LaneSetup, groups: list[list[int]], marks: Any, workers: int, prefetch: int = 2) -> Iterator[Any]:
    return load_epoch(
        world.server(),
        collate,
        count,
        groups,
        marks,
        inputs=["x"],
        workers=workers,
        prefetch=prefetch,
        pin_memory=False,
    )


class SequentialWorkers:
    """Stands for a DataLoader whose processes have each run ahead to the end of the epoch."""

    def __init__(self, dataset: Any, *, num_workers: int, **_: Any) -> None:
        self._dataset, self._workers = dataset, num_workers

    def __iter__(self) -> Iterator[Any]:
        if not self._workers:
            yield from self._dataset
            return
        made = []
        for number in range(self._workers):
            info = SimpleNamespace(id=number, num_workers=self._workers)
            with patch.object(loader, "get_worker_info", lambda info=info: info):
                made.append(list(self._dataset))
        groups = [{index for _, found in items for index in found} for items in made]
        assert sum(map(len, groups)) == len(set().union(*groups)), "two processes make the same micro-batches"
        for turn in zip_longest(*made):
            yield from (item for item in turn if item is not None)


@contextmanager
def simulated_processes() -> Iterator[None]:
    """Loader processes are simulated: real ones take a tenth of a second each."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(loader, "DataLoader", SequentialWorkers))
        yield


def caption_lengths(rows: int, seed: int = 0) -> list[int]:
    """Like Multi30k's captions in tokens: 4 to 45, and every second one 37% longer."""
    draw = random.Random(seed)
    lengths = (draw.lognormvariate(2.5, 0.3) * (1.37 if i % 2 else 1.0) for i in range(rows))
    return [min(45, max(4, round(length))) for length in lengths]


@st.composite
def lane_setups(draw: st.DrawFn) -> LaneSetup:
    """Any corpus and plan: few and many shards, empty ones too, rows longer than a micro-batch, rows left out."""
    lanes = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=12))
    longest = draw(st.sampled_from([1, 12, 50]))
    bad = draw(st.sampled_from([0.0, 0.0, 0.2, 0.9]))
    random_ = random.Random(draw(st.integers(0, 2**16)))
    shards = [
        [Item((s, r), random_.randint(1, longest), bad=random_.random() < bad) for r in range(size)]
        for s, size in enumerate(sizes)
    ]
    tokens, rows = draw(
        st.sampled_from([(40, None), (64, None), (200, None), (None, 1), (None, 3), (None, 7), (64, 3), (200, 7)])
    )
    plan = LanePlan(
        seed=draw(st.integers(0, 2**16)),
        lanes=lanes,
        block_rows=draw(st.sampled_from([1, 2, 5, 16, 64, 1000])),
        tokens=tokens,
        rows=rows,
        multiple=draw(st.sampled_from([1, 4, 8])),
        shuffled=draw(st.integers(0, 3)) > 0,
    )
    uninterrupted = len(sizes) >= lanes and draw(st.booleans())
    return LaneSetup(Memory(shards), plan, uninterrupted, epochs=draw(st.integers(1, 3)))


@st.composite
def places(draw: st.DrawFn, lanes: int) -> Place:
    return Place(draw(st.integers(1, lanes)), draw(st.integers(0, 3)), draw(st.integers(1, 3)))


def resume_anywhere(data: st.DataObject, world: LaneSetup) -> None:
    """Stop a run up to three times, resume it on other ranks, and compare with an uninterrupted one."""
    expected = uninterrupted(world)
    stops = data.draw(st.lists(st.integers(1, max(1, len(expected))), min_size=1, max_size=3, unique=True).map(sorted))
    state, found = start(world), []
    with simulated_processes():
        for begin, end in itertools.pairwise([0, *stops]):
            part, state = run(world, state, data.draw(places(world.plan.lanes)), end - begin)
            found += part
        part, _ = run(world, state, data.draw(places(world.plan.lanes)))
    assert found + part == expected
