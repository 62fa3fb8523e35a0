"""From lanes to the micro-batches that one rank trains on, by loader processes or without."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.data.lanes import Bookmark, Example, LaneServer, MicroBatch, RowId
from trainer.errors import RankzeroError, UsageError

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Loaded:
    """One forward's worth of rows: a micro-batch of one lane, or of several that are fused."""

    lanes: dict[int, Bookmark]  # the lanes in it, each with the bookmark that follows
    ids: dict[int, list[RowId]]
    sequences: dict[int, int]  # of each lane, in the order of the inputs' rows
    inputs: Batch
    rows: int
    tokens: int  # of source and target, without padding
    padded: int  # with padding

    def pin_memory(self) -> Loaded:
        """For a DataLoader, which pins what it does not know only if it can do so itself."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})

    def __reduce__(self) -> Any:
        """From a loader process as plain arrays: a fifth of the time of shared memory, and /dev/shm may be small."""
        return _received, ({**vars(self), "inputs": {name: tensor.numpy() for name, tensor in self.inputs.items()}},)


def _received(fields: dict[str, Any]) -> Loaded:
    inputs = {name: torch.from_numpy(array) for name, array in fields["inputs"].items()}
    return Loaded(**{**fields, "inputs": inputs})


class _Steps(IterableDataset):  # type: ignore[type-arg]
    """Yields (step of the epoch, what the groups of this loader process have for it)."""

    def __init__(
        self,
        server: LaneServer,
        collate: Callable[[Sequence[Example]], Batch],
        corrupt: Callable[..., Sequence[Example]],
        count: Callable[[Example], int],
        groups: Sequence[Sequence[int]],
        marks: dict[int, Bookmark],
        inputs: Sequence[str],
    ) -> None:
        self._server, self._collate, self._noised, self._count = server, collate, corrupt, count
        self._groups, self._marks, self._inputs = groups, marks, inputs

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
            found = {}
            for index, group in groups.items():
                parts = [part for lane in group if (part := next(streams[lane], None)) is not None]
                if parts:
                    found[index] = self._load(parts)
            if not found:
                return
            yield step, found

    def _load(self, parts: list[MicroBatch]) -> Loaded:
        examples = [example for part in parts for example in self._noised(part.examples, *_key_of(part))]
        inputs = self._collate(examples)
        return Loaded(
            {part.lane: part.bookmark for part in parts},
            {part.lane: part.ids for part in parts},
            {part.lane: len(part.examples) for part in parts},
            inputs,
            rows=sum(len(part.ids) for part in parts),
            tokens=sum(map(self._count, examples)),
            padded=sum(inputs[name].numel() for name in self._inputs),
        )


def _unchanged(examples: Sequence[Example], *key: object) -> Sequence[Example]:
    return examples


def _key_of(part: MicroBatch) -> tuple[int, ...]:
    """What a micro-batch has for itself: epoch, lane, and the bookmark that follows it."""
    mark = part.bookmark
    return mark.epoch, part.lane, mark.start, mark.first_step, mark.served


def _check_semaphores(workers: int) -> None:
    """Create what loader processes need of /dev/shm, to report a lack of it by name: a DataLoader does not.

    Raises:
        UsageError: /dev/shm is full, or may not be written.
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
    corrupt: Callable[..., Sequence[Example]] = _unchanged,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Iterator[list[Loaded | None]]:
    """For each step of the rest of the epoch, what each group of lanes has; None where its lanes are done.

    Ends when all groups are done; the caller goes on with fillers until all ranks are. `corrupt(examples, *key)` makes
    what is drawn at random for a micro-batch, by its key. `inputs` names the token tensors of a batch, for counting
    padding.
    """
    workers = min(workers, len(groups))
    _check_semaphores(workers)
    loader = DataLoader(
        _Steps(server, collate, corrupt, count, groups, marks, inputs),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # its own: drawing a seed from the global one would shift dropout
    )
    # loader processes take turns, one item per step each: the items of a step stand side by side
    turns = itertools.groupby(map(_checked, loader), key=lambda item: item[0]) if workers > 1 else None
    steps = (
        ((s, list(items)) for s, items in turns) if turns else ((s, [(s, found)]) for s, found in map(_checked, loader))
    )
    for _, items in steps:
        merged = {index: loaded for _, found in items for index, loaded in found.items()}
        yield [merged.get(index) for index in range(len(groups))]


def _ignore_stop_signals(worker: int) -> None:
    """In a loader process: a stop signal to the whole group is for the rank, which still finishes its step and saves.

    A torch elastic agent and SLURM signal the children of a rank too; a loader process that dies of it would fail the
    rank in the middle of the step. Only the rank itself may end it.
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


def _checked(item: Any) -> Any:
    if isinstance(item, RankzeroError):
        try:
            raise item
        finally:
            del item  # or error and frame hold each other, and the loader processes stay
    return item
