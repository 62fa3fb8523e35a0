"""Load the micro-batches of one rank from its lanes, with loader processes or without."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add, itemgetter
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.concatenation import PLACES
from trainer.data.lane_plan import Bookmark
from trainer.data.lanes import Example, LaneServer, MicroBatch, RowId
from trainer.data.left_out import LeftOut
from trainer.errors import RankzeroError, UsageError

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Loaded:
    """The rows of one forward pass: a micro-batch of one lane, or of several that are fused."""

    lanes: dict[int, Bookmark]  # the lanes in it, each with the bookmark that follows
    ids: dict[int, list[RowId]]
    sequences: dict[int, int]  # of each lane, in the order of the inputs' rows
    inputs: Batch
    rows: int
    tokens: int  # of source and target, without padding
    padded: int  # with padding
    targets: float = 0.0  # labels that count, times the weights of their rows if there are any
    left_out: int = 0  # rows that are left out, see `MicroBatch`
    left: LeftOut | None = None
    ended: dict[int, Bookmark] = field(default_factory=dict)  # of lanes whose last rows were all left out
    corpora: Sequence[tuple[int, float]] = ()  # rows and targets by corpus of a mixture

    @property
    def has_rows(self) -> bool:
        """Whether it is more than a note about rows that were left out."""
        return bool(self.lanes)

    def pin_memory(self) -> Loaded:
        """Pin the tensors. A DataLoader calls this for types that it does not know."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})

    def __reduce__(self) -> Any:
        """Pickle tensors as arrays: five times as fast as shared memory, and /dev/shm may be small."""
        return _received, ({**vars(self), "inputs": {name: tensor.numpy() for name, tensor in self.inputs.items()}},)


def _received(fields: dict[str, Any]) -> Loaded:
    inputs = {name: torch.from_numpy(array) for name, array in fields["inputs"].items()}
    return Loaded(**{**fields, "inputs": inputs})


@dataclass(eq=False)
class _Steps(IterableDataset):  # type: ignore[type-arg]
    """Yields (step of the epoch, {group: Loaded}) for the groups of this loader process."""

    _server: LaneServer
    _collate: Callable[[Sequence[Example]], Batch]
    _corrupt: Callable[..., Sequence[Example]]
    _count: Callable[[Example], int]
    _groups: Sequence[Sequence[int]]
    _marks: dict[int, Bookmark]
    _inputs: Sequence[str]
    _targets: Callable[[Batch], float]
    _by_corpus: Callable[[Batch], list[float]] | None

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        groups = {index: list(g) for index, g in enumerate(self._groups) if index % of == number}
        lanes = [lane for group in groups.values() for lane in group]
        if not lanes:
            return
        try:
            yield from self._steps(groups, self._server.epoch(lanes, [self._marks[lane] for lane in lanes]))
        except RankzeroError as error:  # a DataLoader would wrap it into a traceback
            if worker is None:
                raise
            yield error

    def _steps(self, groups: dict[int, list[int]], streams: dict[int, Iterator[MicroBatch]]) -> Iterator[Any]:
        for step in itertools.count():
            loaded = {}
            for index, group in groups.items():
                parts = [part for lane in group if (part := next(streams[lane], None)) is not None]
                if parts:
                    loaded[index] = self._load(parts)
            if not loaded:
                return
            yield step, loaded

    def _load(self, parts: list[MicroBatch]) -> Loaded:
        examples = list[Example]()
        left = [part.left for part in parts if part.left is not None]
        counts: dict[str, Any] = {
            "left_out": sum(part.left_out for part in parts),
            "left": reduce(add, left) if left else None,
            "ended": {part.lane: part.bookmark for part in parts if not part.examples},
        }
        parts = [part for part in parts if part.examples]
        if not parts:
            return Loaded({}, {}, {}, {}, 0, 0, 0, **counts)
        for part in parts:  # the key is one that only this micro-batch has
            mark = part.bookmark
            examples += self._corrupt(part.examples, mark.epoch, part.lane, mark.start, mark.first_step, mark.served)
        inputs, corpora = self._collate(examples), list[tuple[int, float]]()
        if self._by_corpus is not None:
            found = [pair for part in parts for pair in part.corpora]
            inputs = {**inputs, "corpora": torch.tensor([corpus for corpus, _ in found])}
            rows = Counter[int]()
            for corpus, begun in found:
                rows[corpus] += begun
            corpora = [(rows[corpus], targets) for corpus, targets in enumerate(self._by_corpus(inputs))]
        return Loaded(
            {part.lane: part.bookmark for part in parts},
            {part.lane: part.ids for part in parts},
            {part.lane: len(part.examples) for part in parts},
            inputs,
            rows=sum(len(part.ids) for part in parts),
            tokens=sum(map(self._count, examples)),
            padded=_positions(inputs, self._inputs),
            targets=self._targets(inputs),
            corpora=corpora,
            **counts,
        )


def _positions(inputs: Batch, names: Sequence[str]) -> int:
    """Return the positions that a model computes: the tokens of concatenated rows, and else with padding."""
    concatenated = sum(tensor.numel() for name, tensor in inputs.items() if name.endswith(PLACES))
    return concatenated or sum(inputs[name].numel() for name in names)


def _check_semaphores(workers: int) -> None:
    """Create the semaphores that loader processes need, because a DataLoader does not say that /dev/shm is full.

    Raises:
        UsageError: /dev/shm is full or not writable.
    """
    try:
        _ = [multiprocessing.Queue() for _ in range(workers and workers + 3)]
    except OSError as error:
        failed = UsageError(
            f"data.workers={workers}: loader processes cannot be started: {error.strerror}. They need semaphores in "
            "/dev/shm, which is full or too small here. Set data.workers=0, or enlarge it (docker: --shm-size=1g)"  # noqa: S108
        )
        failed.everywhere = False
        raise failed from None


def load_epoch(
    server: LaneServer,
    collate: Callable[[Sequence[Example]], Batch],
    count: Callable[[Example], int],
    groups: Sequence[Sequence[int]],
    marks: dict[int, Bookmark],
    *,
    inputs: Sequence[str],
    corrupt: Callable[..., Sequence[Example]] = lambda examples, *_: examples,
    targets: Callable[[Batch], float] = lambda batch: 0.0,
    by_corpus: Callable[[Batch], list[float]] | None = None,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Iterator[list[Loaded | None]]:
    """Yield the micro-batches of each step of the rest of the epoch: one for each group, None if its lanes are done.

    The iterator ends when all groups are done. The caller then uses fillers until all ranks are.

    Args:
        server: makes the micro-batches of lanes.
        collate: makes a batch from examples.
        count: tokens of an example, without padding.
        groups: lanes that are fused into one forward pass.
        marks: the bookmark of each lane.
        inputs: the token tensors of a batch, for counting padding.
        corrupt: `corrupt(examples, *key)` draws at random for a micro-batch, by its key.
        targets: labels of a batch that count.
        by_corpus: the same for each corpus of a mixture, from the `corpora` of the rows of a batch.
        workers: loader processes, at most one per group.
        prefetch: micro-batches that each loader process prepares in advance.
        pin_memory: whether tensors are pinned for copies to a GPU.

    Raises:
        UsageError: loader processes cannot be started.
    """
    workers = min(workers, len(groups))
    _check_semaphores(workers)
    loader = DataLoader(
        _Steps(server, collate, corrupt, count, groups, marks, inputs, targets, by_corpus),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # a seed drawn from the global generator would shift dropout
    )
    items = map(_raise_error, loader)
    if workers > 1:  # processes take turns, one item per step each: the items of a step follow each other
        steps = (dict(ChainMap(*(item for _, item in of))) for _, of in itertools.groupby(items, itemgetter(0)))
    else:  # not grouped, which would read the next step first
        steps = (item for _, item in items)
    for loaded in steps:
        yield [loaded.get(index) for index in range(len(groups))]


def _ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals in a loader process, unless the rank sends them.

    A torch elastic agent and SLURM also signal the children of a rank. If a loader process died of it, the rank would
    fail in the middle of the step, which it can still finish and save.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signals, rank = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}, os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != rank:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # threads that start later inherit it
    threading.Thread(target=wait, daemon=True).start()


def _raise_error(item: Any) -> Any:
    if isinstance(item, RankzeroError):
        try:
            raise item
        finally:
            del item  # error and frame would refer to each other, and keep the loader processes
    return item
