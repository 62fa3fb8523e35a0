"""The place of a process among the ranks that train one model on different lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


def fusable(lanes: int, ranks: int) -> list[int]:
    """Return how many lanes of a rank may be one forward, ascending: the divisors of its lanes if all have as many."""
    own = 1 if lanes % ranks else lanes // ranks
    return [n for n in range(1, own + 1) if own % n == 0]


@dataclass(frozen=True)
class DataParallel:
    """One rank of `size` data-parallel ranks. Lanes are dealt to the ranks in turn."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this is rank zero, which reads, writes and reports for all."""
        return self.rank == 0

    def lanes(self, count: int) -> range:
        """Return this rank's lanes among lanes 0 to `count` - 1."""
        return range(self.rank, count, self.size)

    def lane_groups(self, count: int, fuse: int) -> list[list[int]]:
        """Return this rank's lanes in groups of `fuse` lanes, each of which is one forward."""
        own = self.lanes(count)
        return [list(own[at : at + fuse]) for at in range(0, len(own), fuse)]

    def rounds(self, items: Sequence[Item]) -> Iterable[Item | None]:
        """Return this rank's share of `items`, as many on every rank: None where there is none left."""
        for first in range(0, len(items), self.size):
            yield items[first + self.rank] if first + self.rank < len(items) else None


def run_on_main(main: bool, work: Callable[[], Any], broadcast: Callable[[Any], Any]) -> Any:
    """Run `work()` on rank zero. Return its result, or raise its error, on all ranks.

    Args:
        main: whether this rank is rank zero.
        work: called on rank zero only.
        broadcast: returns rank zero's value on all ranks.
    """
    result, error = None, None
    if main:
        try:
            result = work()
        except Exception as caught:
            error = caught
    result, error = broadcast((result, error))
    if error is not None:
        error.everywhere = True
        raise error
    return result
