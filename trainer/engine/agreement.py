"""What the ranks agree on before a step: its totals, whether to stop, and what is due by the clock.

The numbers are known on the host. So they are summed up in the background while the step before runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainer.data.lane_plan import Bookmark
from trainer.data.lanes import LaneServer
from trainer.data.loader import Loaded, load_epoch
from trainer.engine.runtime import Runtime
from trainer.engine.step import Totals
from trainer.task.base import Task


def micro_batches(
    server: LaneServer, task: Task, groups: Sequence[Sequence[int]], marks: dict[int, Bookmark], *, pin_memory: bool
) -> Iterator[list[Loaded | None]]:
    """Return the micro-batches of each step of an epoch from the bookmarks on, then None for each group without end."""
    data = task.recipe.data
    loaded = load_epoch(
        server,
        task.training_batch,
        task.tokens,
        groups,
        marks,
        inputs=task.inputs,
        corrupt=task.corrupt,
        targets=task.targets,
        by_corpus=task.targets_by_corpus if data.mix else None,
        workers=data.workers,
        prefetch=data.prefetch,
        pin_memory=pin_memory,
    )
    nothing: list[Loaded | None] = [None] * len(groups)
    return itertools.chain(loaded, itertools.repeat(nothing))


LEFT_OUT = ("left_out", "used", "bad", "lines")
TOTALS = 8  # sums of a step, before those of rows that are left out and those of each corpus of data.mix


@dataclass(frozen=True)
class Ahead:
    """The micro-batches of a coming step, whose totals the ranks sum up in the background."""

    batches: Sequence[Loaded | None]
    _sums: Callable[[], list[Any]]
    _corpora: int

    def totals(self) -> Totals:
        """Return the totals of the step. Waits for all ranks."""
        targets, *others = self._sums()
        end = len(others) - 2 * self._corpora
        corpus_rows, corpus_targets = others[end : end + self._corpora], others[end + self._corpora :]
        rows, tokens, padded, lanes, stopping, timed_eval, timed_save = map(int, others[: TOTALS - 1])
        totals = Totals(targets, rows, tokens, padded, lanes, stopping, timed_eval, timed_save)
        totals = replace(totals, corpus_rows=tuple(map(int, corpus_rows)), corpus_targets=tuple(corpus_targets))
        counts: dict[str, Any] = dict(zip(LEFT_OUT, map(int, others[TOTALS - 1 : end]), strict=False))
        return replace(totals, **counts)


def agree(
    runtime: Runtime,
    batches: Sequence[Loaded | None],
    due: tuple[bool, bool] = (False, False),
    corpora: int = 0,
    *,
    unchecked: bool = False,
) -> Ahead:
    """Start the sum of the totals of the next step. All ranks. It does not wait for other ranks or the device.

    Args:
        due: whether an evaluation and a checkpoint are due by the clock. Only that of rank zero counts.
        corpora: of data.mix.
        unchecked: whether rows are checked while they are read, so that those that are left out are summed up, too.
    """
    loaded = [b for b in batches if b is not None]
    own = [
        sum(b.targets for b in loaded),
        sum(b.rows for b in loaded),
        sum(b.tokens for b in loaded),
        sum(b.padded for b in loaded),
        sum(len(b.lanes) for b in loaded),
        int(runtime.stop.received is not None),
        *(int(is_due and runtime.main) for is_due in due),
    ]
    if unchecked:
        left = [b.left for b in loaded if b.left is not None]
        own += [sum(b.left_out for b in loaded)]
        own += [sum(getattr(part, name) for part in left) for name in LEFT_OUT[1:]]
    mixed = [b.corpora for b in loaded if b.has_rows]
    own += [sum(of[corpus][count] for of in mixed) for count in (0, 1) for corpus in range(corpora)]
    return Ahead(batches, runtime.start_sum(own, torch.float64), corpora)  # counts are exact in fp64
