"""Lanes of any number of ranks in one process, over rows that are only an id and a length: the world of `scale.py`.

Lanes, bookmarks, their JSON and the choice between whole shards and dealing are the real ones of `trainer`.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.counter_rng import permutation
from trainer.data.lane_plan import Bookmark, LanePlan
from trainer.data.lanes import Example, LaneServer, MicroBatch, RowId
from trainer.data.mix_ledger import problems
from trainer.data.mixing import Mixture
from trainer.data.quotas import Quotas
from trainer.data_parallel import DataParallel
from trainer.engine.corpus import deals_whole_shards
from trainer.engine.progress import Progress
from trainer.files import read_json, write_json

NO_TOKENS: Example = {}


# -- rows that are only an id and a length ---------------------------------------------------------------------------


class Row:
    __slots__ = ("id", "length")

    def __init__(self, row_id: RowId, length: int) -> None:
        self.id, self.length = row_id, length


class Shard:
    format = "prepared"  # a single one is never dealt whole, whatever it is

    def __init__(self, lengths: array[int]) -> None:
        self.lengths, self.size = lengths, sum(lengths)


class Corpus:
    """A source for `LaneServer`; counts the rows that its readers read."""

    def __init__(self, lengths: np.ndarray, shards: int) -> None:
        """`shards` of 1: one file, as it is. More: dealt as `rankzero prepare` does, of each group a row to each."""
        groups = range(-(-len(lengths) // shards))
        shard_of = (
            np.concatenate([permutation(shards, 1, "prepare", group) for group in groups])[: len(lengths)]
            if shards > 1
            else np.zeros(len(lengths), dtype=np.int64)
        )
        self.read = 0
        self.lengths = lengths[np.argsort(shard_of, kind="stable")]  # of all rows, shard after shard
        ends = [0, *itertools.accumulate(np.bincount(shard_of, minlength=shards).tolist())]
        self.first = ends[:-1]  # the place in `lengths` of a shard's first row
        self.shards: Sequence[Shard] = [
            Shard(array("H", self.lengths[a:b].tobytes())) for a, b in itertools.pairwise(ends)
        ]

    def stream(self, shard: int, state: Any = None) -> Stream:
        return Stream(self, shard, state["row"] if state else 0)


class Stream:
    def __init__(self, corpus: Corpus, shard: int, row: int) -> None:
        self._corpus, self._shard, self._row = corpus, shard, row
        self._lengths = corpus.shards[shard].lengths

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Row:
        row = self._row
        if row >= len(self._lengths):
            raise StopIteration
        self._row = row + 1
        self._corpus.read += 1
        return Row((self._shard, row), self._lengths[row])

    def state(self) -> dict[str, Any]:
        return {"row": self._row, "offsets": [153 * self._row]}  # as of a file of 153 bytes a line


def drawn(kind: str, rows: int, seed: int = 0) -> np.ndarray:
    """Lengths in tokens. "periodic": every second row is twice as long. "captions": like Multi30k's pairs."""
    draw, every_second = np.random.default_rng(seed), np.arange(rows) % 2
    if kind == "captions":
        return np.clip(draw.lognormal(2.5, 0.3, rows) * (1 + 0.37 * every_second), 4, 45).astype(np.uint16)
    lengths = draw.lognormal(math.log(100), 0.5, rows)
    return np.clip(lengths * (1 + every_second * (kind == "periodic")), 8, 512).astype(np.uint16)


# -- lanes of all ranks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    corpus: Corpus
    plan: LanePlan

    @cached_property
    def whole_shards(self) -> bool:
        return deals_whole_shards(self.corpus, self.plan)  # type: ignore[arg-type]

    def server(self) -> LaneServer:
        return LaneServer(
            self.corpus, self.plan, lambda rows: [(NO_TOKENS, row.length) for row in rows], None, self.whole_shards
        )

    def readers(self, ranks: int) -> list[list[int]]:
        """The lanes of each rank."""
        return [DataParallel(rank, ranks).lane_groups(self.plan.lanes, self.plan.lanes)[0] for rank in range(ranks)]


class MixedRow(Row):
    __slots__ = ("corpus",)

    def __init__(self, row_id: RowId, length: int, corpus: int) -> None:
        super().__init__(row_id, length)
        self.corpus = corpus


@dataclass(frozen=True)
class MixedWorld:
    """Several corpora, whose shards are numbered one corpus after the other in row ids."""

    corpora: Sequence[Corpus]
    quotas: Quotas
    plan: LanePlan

    @cached_property
    def first(self) -> list[int]:
        return [0, *itertools.accumulate(len(corpus.shards) for corpus in self.corpora)]

    def server(self) -> LaneServer:
        def usable(corpus: int, row: Row) -> MixedRow:
            return MixedRow((self.first[corpus] + row.id[0], row.id[1]), row.length, corpus)

        whole = [deals_whole_shards(corpus, self.plan) for corpus in self.corpora]  # type: ignore[arg-type]
        mixture = Mixture(self.corpora, self.quotas, usable, whole)
        return LaneServer(
            self.corpora[0], self.plan, lambda rows: [(NO_TOKENS, row.length) for row in rows], mixture=mixture
        )

    def readers(self, ranks: int) -> list[list[int]]:
        """The lanes of each rank."""
        return [DataParallel(rank, ranks).lane_groups(self.plan.lanes, self.plan.lanes)[0] for rank in range(ranks)]


@dataclass
class MixedEpoch:
    """What all lanes serve in an epoch."""

    digests: list[list[int]]  # for each lane and step, of its rows in order
    used: list[np.ndarray]  # for each corpus, how often each row was served
    problems: list[str]  # blocks whose rows are not in proportion
    steps: int
    seconds: float
    marks: dict[int, Bookmark]  # those of the next epoch


def mixed_epoch(world: MixedWorld, marks: dict[int, Bookmark]) -> MixedEpoch:
    """All lanes of an epoch, by one reader, as a rank alone does it."""
    began, lanes = time.process_time(), range(world.plan.lanes)
    used = [np.zeros(len(corpus.lengths), dtype=np.uint16) for corpus in world.corpora]
    digests: list[list[int]] = [[] for _ in lanes]
    rows: list[list[str]] = [[] for _ in lanes]
    after = dict(marks)
    corpus_of = np.repeat(np.arange(len(world.corpora)), [len(corpus.shards) for corpus in world.corpora])
    for _, part in served(world, [lanes], marks):
        for shard, row in part.ids:
            number = int(corpus_of[shard])
            used[number][world.corpora[number].first[shard - world.first[number]] + row] += 1
            rows[part.lane].append(world.quotas.names[number] + "/")
        digests[part.lane].append(hash(tuple(part.ids)))
        after[part.lane] = part.bookmark
    line = {"epoch": 0, "rows": {str(lane): names for lane, names in enumerate(rows)}}
    found = list(problems([line], world.quotas, world.plan)) if marks[0].epoch == 0 else []
    last = {lane: mark.next_epoch(mark.epoch + 1) for lane, mark in after.items()}
    return MixedEpoch(digests, used, found, max(map(len, digests)), time.process_time() - began, last)


def served(
    world: World | MixedWorld, readers: Iterable[Sequence[int]], marks: dict[int, Bookmark], steps: int | None = None
) -> Iterator[tuple[int, MicroBatch]]:
    """(step from here on, micro-batch) of all lanes of all readers, one reader after another, at most `steps` each."""
    for lanes in readers:
        streams = world.server().epoch(lanes, [marks[lane] for lane in lanes])
        for step in itertools.count() if steps is None else range(steps):
            found = [part for stream in streams.values() if (part := next(stream, None)) is not None]
            if not found:
                break
            yield from ((step, part) for part in found)


@dataclass
class Epoch:
    """What all lanes serve in an epoch."""

    work: np.ndarray  # (steps, lanes) padded tokens; 0 = a filler
    digests: list[list[int]]  # for each lane and step, of its rows in order
    lost: int  # rows that no lane served
    repeated: int  # rows that were served more than once
    tokens: int  # of all rows, without padding
    seconds: float  # of processor time, as all of this module: others may use the machine

    def evenness(self, ranks: int) -> dict[str, float]:
        """How the work falls on ranks that own lanes r, r + W, …"""
        steps, lanes = self.work.shape
        work = np.pad(self.work, ((0, 0), (0, -lanes % ranks))).reshape(steps, -1, ranks).sum(axis=1)
        return {
            "steps": steps,
            "padding": 1 - self.tokens / float(work.sum()),
            "most_work_over_mean": float(work.sum(axis=0).max() / work.sum(axis=0).mean()),
            "idle": 1 - float(work.sum()) / (ranks * float(work.max(axis=1).sum())),
            "fillers": float((self.work == 0).mean()),
        }


def epoch_of(world: World, epoch: int = 0) -> Epoch:
    """All lanes of an epoch: with whole shards one after another, else by one reader, as a rank alone does it."""
    corpus, plan = world.corpus, world.plan
    lanes = range(plan.lanes)
    began, counted = time.process_time(), np.zeros(len(corpus.lengths), dtype=np.uint8)
    work: list[list[int]] = [[] for _ in lanes]
    digests: list[list[int]] = [[] for _ in lanes]
    readers: list[Sequence[int]] = [[lane] for lane in lanes] if world.whole_shards else [lanes]
    for step, part in served(world, readers, {lane: Bookmark(epoch) for lane in lanes}):
        assert step == len(work[part.lane]), "a lane serves at every step until it is done"
        numbers = [corpus.first[shard] + row for shard, row in part.ids]
        np.add.at(counted, numbers, 1)
        work[part.lane].append(plan.width(int(corpus.lengths[numbers].max())) * len(numbers))
        digests[part.lane].append(hash(tuple(part.ids)))
    steps = max(map(len, work))
    return Epoch(
        np.array([own + [0] * (steps - len(own)) for own in work]).T,
        digests,
        lost=int((counted == 0).sum()),
        repeated=int((counted > 1).sum()),
        tokens=int(corpus.lengths.sum(dtype=np.int64)),
        seconds=time.process_time() - began,
    )


def same_after_resumes(
    world: World | MixedWorld, whole: Epoch | MixedEpoch, ranks: Sequence[int], sample: int | None = None
) -> dict[str, Any]:
    """Serves the epoch in as many parts as `ranks` has numbers, each resumed from the JSON of the one before.

    `sample`: of so many ranks only; for corpora that every rank would read whole. "state" is the last one read.
    """
    lanes, steps = world.plan.lanes, max(map(len, whole.digests))
    state = json.dumps(Progress.start(lanes).to_json(Progress.start(lanes).marks))
    stops = [steps * part // len(ranks) for part in range(len(ranks) + 1)]
    checked, different, last_read = 0, 0, state
    for number, first, last in zip(ranks, stops, stops[1:], strict=False):
        before, last_read = Progress.from_json(json.loads(state)).marks, state
        readers = world.readers(number)
        some = readers if sample is None else readers[:: max(1, number // sample)]
        marks = dict(before)
        for step, part in served(world, some, before, last - first):
            checked += 1
            different += hash(tuple(part.ids)) != whole.digests[part.lane][first + step]
            marks[part.lane] = part.bookmark
        if sample is not None:  # the bookmarks of those that were not asked
            marks |= {part.lane: part.bookmark for _, part in served(world, [range(lanes)], before, last - first)}
        state = json.dumps(Progress.start(lanes).to_json(marks))
    if sample is None:
        different += sum(map(len, whole.digests)) - checked  # what was not served again
    found = {"ranks": list(ranks), "micro_batches_checked": checked, "different": different}
    return {**found, "state": json.loads(last_read)}


def one_rank(world: World, rank: int, ranks: int, *, memory: bool = False) -> dict[str, float]:
    """An epoch of one rank's lanes alone: what it reads, seconds to its first and to its other steps, memory."""
    lanes = world.readers(ranks)[rank]
    world.corpus.read = 0
    if memory:
        tracemalloc.start()
    times, read_before_first = [time.process_time()], 0
    for step, part in served(world, [lanes], {lane: Bookmark() for lane in lanes}):
        read_before_first = read_before_first or world.corpus.read
        if part.lane == lanes[-1] and step + 1 == len(times):
            times.append(time.process_time())
    found = {
        "rows_read_before_first_step": read_before_first,
        "rows_read": world.corpus.read,
        "share_of_corpus_read": world.corpus.read / len(world.corpus.lengths),
    }
    if memory:
        found |= {"peak_bytes": float(tracemalloc.get_traced_memory()[1])}
        tracemalloc.stop()
        return found
    return found | {"seconds_to_first_step": times[1] - times[0], "seconds": times[-1] - times[0]}


def bookmarks(state: dict[str, Any], ranks: int) -> dict[str, float]:
    """What the bookmarks of all lanes weigh: in state.json, and on their way to rank zero."""
    progress = Progress.from_json(state)
    own = [{lane: progress.marks[lane] for lane in range(rank, len(progress.marks), ranks)} for rank in range(ranks)]
    began = time.process_time()
    sent = [len(pickle.dumps(part)) for part in own]  # as dist.gather_object sends it, padded to the longest
    pickled = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        write_json(Path(folder) / "state.json", state)
        written = time.process_time() - began
        size = (Path(folder) / "state.json").stat().st_size
        began = time.process_time()
        Progress.from_json(read_json(Path(folder) / "state.json"))
        read = time.process_time() - began
    return {
        "state_json_bytes": size, "bytes_a_lane": size / len(progress.marks), "gathered_bytes": max(sent) * ranks,
        "seconds_to_pickle_all": pickled, "seconds_to_write": written, "seconds_to_read": read,
    }  # fmt: skip
