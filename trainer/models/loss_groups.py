"""Sums of losses by groups of rows, collected while the loss of a micro-batch is computed.

A loss of labels or of rows calls `report` with the losses before it sums them up. Nothing waits for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tasks import this module, also where no model is made
    import torch
    from torch import Tensor

IGNORED = -100  # the label of an ignored position
_current: GroupLosses | None = None


class GroupLosses:
    """The sums of the losses of groups, over any number of micro-batches.

    Attributes:
        sums: (G,) fp64 on the device.
        complete: every loss was reported, label by label or row by row.
    """

    def __init__(self, number: int, device: torch.device) -> None:
        import torch

        self.sums = torch.zeros(number, dtype=torch.float64, device=device)
        self.complete = True
        self._numbers = torch.arange(number, device=device)[:, None]
        self._rows: Tensor | None = None
        self._labels: Tensor | None = None
        self._seen = 0

    def start(self, rows: Tensor, labels: Tensor) -> None:
        """Begin a micro-batch.

        Args:
            rows: (B,) the group of each row.
            labels: (N,) the row of each label.
        """
        self._rows, self._labels, self._seen = rows, rows[labels], 0

    def end(self) -> None:
        """End a micro-batch. One without groups is a filler."""
        if self._labels is not None and self._seen != len(self._labels):
            self.complete = False
        self._rows = self._labels = None

    def add(self, losses: Tensor) -> None:
        """Add the losses (n,) of the next labels, or of all rows."""
        if self._rows is None or self._labels is None:
            return
        groups = self._labels[self._seen : self._seen + len(losses)]
        self._seen += len(losses)
        if len(losses) == len(self._rows) != len(self._labels) and self._seen == len(losses):
            groups, self._seen = self._rows, len(self._labels)
        if len(groups) == len(losses):  # else `end` finds that they are no labels of this micro-batch
            self.sums += losses.double().where(groups == self._numbers, 0.0).sum(1)

    def add_each(self, loss_of: Callable[[Tensor], Tensor], labels: Tensor) -> None:
        """Add a loss that is a function of all labels: for each group that of its labels alone."""
        if self._labels is None:
            return
        groups = self._labels.view_as(labels)
        for number in range(len(self.sums)):
            self.sums[number] += loss_of(labels.masked_fill(groups != number, IGNORED))
        self._seen = len(self._labels)

    def select(self, places: Tensor) -> None:
        """Follow a selection of labels."""
        if self._labels is not None:
            self._labels = self._labels.index_select(0, places)


def current() -> GroupLosses | None:
    """Return what collects losses now."""
    return _current


@contextlib.contextmanager
def collecting(groups: GroupLosses | None) -> Iterator[None]:
    """Collect the losses that are reported in this block."""
    global _current
    before, _current = _current, groups
    try:
        yield
    finally:
        _current = before


def report(losses: Tensor) -> None:
    """Report the losses (n,) of the next labels, or of all rows."""
    if _current is not None:
        _current.add(losses.detach())


def total(losses: Tensor) -> Tensor:
    """Report losses, and return their sum."""
    report(losses)
    return losses.sum()
