"""Decide whether a run that has failed starts again, after which pause, and with how many ranks. Nothing is run here.

The bound counts restarts in a row without a newer checkpoint, so a run that makes progress has no limit. The pause
doubles with each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trainer.data_parallel import fusable

PAUSE_SECONDS = float(os.environ.get("RANKZERO_PAUSE", "5"))  # as in job scripts (slurm/train.sbatch)
MOST_PAUSE_SECONDS = 300.0
SHRINK_AFTER = 2  # failures in a row without a newer checkpoint, after which fewer ranks are tried


@dataclass(frozen=True)
class RestartPolicy:
    """The user's wishes about restarts.

    Attributes:
        limit: restarts in a row without a newer checkpoint, at most.
        smaller: numbers of ranks to continue with if that many are lost or fail, descending (`--min-ranks`).
        devices: returns how many ranks this machine has devices for now. None: any number.
        silent_seconds: a run whose status.json does not change for so long is killed. 0 = never.
    """

    limit: int = 0
    smaller: Sequence[int] = ()
    devices: Callable[[], int | None] = lambda: None
    silent_seconds: float = 0.0
    pause_seconds: float = PAUSE_SECONDS


@dataclass(frozen=True)
class Restart:
    """The next start. `number` counts the failures in a row without a newer checkpoint."""

    number: int
    pause: float
    ranks: int


@dataclass
class Failures:
    """The failures of a run since its newest checkpoint.

    Attributes:
        step: of the newest checkpoint that was seen, None if there was none.
        ranks: of the last start.
    """

    policy: RestartPolicy
    step: int | None
    ranks: int
    number: int = field(default=0, init=False)

    def next(self, step: int | None) -> Restart | str:
        """Count a failure. Return the next start, or the reason why there is none.

        Args:
            step: of the newest checkpoint now.
        """
        if step is not None and (self.step is None or step > self.step):
            self.step, self.number = step, 0
        self.number += 1
        if self.number > self.policy.limit:
            since = "the first checkpoint" if self.step is None else f"a newer checkpoint than that of step {self.step}"
            return f"{self.policy.limit} restarts without {since} (--restarts {self.policy.limit})"
        devices = self.policy.devices()
        if devices is not None and devices < self.ranks and self.policy.smaller:
            fitting = [ranks for ranks in self.policy.smaller if ranks <= devices]
            if not fitting:
                return f"{devices} GPUs are left, too few for --min-ranks {min(self.policy.smaller)}"
            self.ranks = fitting[0]
        elif self.number >= SHRINK_AFTER:
            self.ranks = next((ranks for ranks in self.policy.smaller if ranks < self.ranks), self.ranks)
        pause = min(MOST_PAUSE_SECONDS, self.policy.pause_seconds * 2 ** (self.number - 1))
        return Restart(self.number, pause, self.ranks)


def smaller_numbers(ranks: int, least: int, lanes: int, fuse: int, possible: Callable[[int], bool]) -> list[int]:
    """Return the numbers of ranks from `least` to `ranks` - 1 that can train a recipe, descending.

    Numbers that do not divide the lanes let ranks idle. They are left out unless there is no other.

    Args:
        lanes: `data.lanes`.
        fuse: `loop.fuse_lanes`, or 1 if it is measured.
        possible: whether the config can have that many ranks.
    """
    numbers = [n for n in range(min(ranks - 1, lanes), least - 1, -1) if fuse in fusable(lanes, n) and possible(n)]
    return [n for n in numbers if lanes % n == 0] or numbers
