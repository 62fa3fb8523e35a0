"""Planted faults, each a hook of the ranks: `rankzero verify` has to find every one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any


def mean_of_means() -> None:
    """Each rank divides by its own count of labels, and the ranks' means are averaged."""
    from trainer.engine.step import Stepper

    gradients = Stepper.gradients

    def wrapped(self: Stepper, batches: Any, step: int, totals: Any) -> Any:
        own = sum(self.task.targets(b.inputs) for b in batches if b is not None)
        return gradients(self, batches, step, replace(totals, targets=own * self.runtime.data_parallel.size))

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def lane_read_twice() -> None:
    """Lane 1 reads the rows of lane 0."""
    from trainer.data.lane_plan import Bookmark
    from trainer.data.lanes import LaneServer, MicroBatch

    epoch = LaneServer.epoch

    def wrapped(
        self: LaneServer, lanes: Sequence[int], bookmarks: Sequence[Bookmark]
    ) -> dict[int, Iterator[MicroBatch]]:
        found = epoch(self, lanes, bookmarks)
        if 1 in lanes:
            twin = epoch(self, [0], [bookmarks[list(lanes).index(1)]])[0]
            found[1] = (replace(batch, lane=1) for batch in twin)
        return found

    LaneServer.epoch = wrapped  # type: ignore[method-assign]


def moments_not_restored() -> None:
    """A resumed run begins with empty moments."""
    from trainer.engine.engines import base

    base.moment_names = lambda moments: {}


def batch_repeated_after_resume() -> None:
    """A resumed run serves the last micro-batch of lane 0 once more."""
    from trainer.engine.progress import Progress

    original = Progress.from_json.__func__  # type: ignore[attr-defined]

    def wrapped(cls: type[Progress], state: dict[str, Any]) -> Progress:
        progress: Progress = original(cls, state)
        mark = progress.marks[0]
        progress.marks[0] = replace(mark, served=max(0, mark.served - 1))
        return progress

    Progress.from_json = classmethod(wrapped)  # type: ignore[assignment, method-assign]


def noise_of_the_rank() -> None:
    """Dropout is seeded by the rank instead of the lane."""
    import os

    from trainer.engine import step as module

    original, rank = module.seed_for, int(os.environ.get("RANK", "0"))
    module.seed_for = lambda seed, step, lane, part=0: original(seed, step, rank, part)  # type: ignore[assignment]


def rank_of_several_dies() -> None:
    """A rank of several dies."""
    import os

    if os.environ.get("WORLD_SIZE", "1") != "1":
        dies()


def dies() -> None:
    """A rank dies in its first step."""
    from trainer.engine.step import Stepper

    def dying(self: Stepper, *arguments: Any) -> Any:
        raise ValueError("no company")

    Stepper.gradients = dying  # type: ignore[method-assign]


def no_updates() -> None:
    """The optimizer's rate is zero."""
    from trainer.engine import step as module

    module.set_rates = lambda optimizer, multiplier: None  # type: ignore[assignment]
    from trainer.optim import optimizers

    build = optimizers.build_optimizer

    def wrapped(model: Any, optim: Any, depths: Any) -> Any:
        optimizer = build(model, optim, depths)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return optimizer

    from trainer.engine import session

    session.build_optimizer = wrapped
