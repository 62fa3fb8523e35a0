"""Callbacks: code of a user's own that watches a training (`loop.callbacks`).

A callback sees copies of numbers. It has no access to model, optimizer or rows, and random numbers are seeded for each
step and lane, so it cannot change a step. An exception in a callback ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import user_code
from trainer.errors import UsageError
from trainer.recipe import Recipe


class Callback:
    """Base class of callbacks. Every rank makes its own object and calls its methods at the same steps.

    Attributes:
        recipe: of the run.
        run: the run directory. Only rank zero should write there.
        rank: of this process, from 0.
        ranks: their number.
    """

    def __init__(self, recipe: Recipe, run: Path, rank: int, ranks: int) -> None:
        self.recipe, self.run, self.rank, self.ranks = recipe, run, rank, ranks

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Run after each step, with its "lr", "grad_norm", "rows", "tokens", "epoch" and "progress" (0 to 1)."""

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Run at steps of `loop.log_every`, with the mean "loss" since the last time and the "epoch"."""

    def on_eval(self, step: int, scores: Mapping[str, Any]) -> None:
        """Run after an evaluation on `validation`, with its scores."""

    def on_save(self, step: int, folder: Path) -> None:
        """Run when a checkpoint is handed to the writer. Its folder is complete at the next `on_save` or `on_end`."""

    def on_end(self, step: int) -> None:
        """Run when the training is finished or stopped. It is not called after an error."""


class Callbacks:
    """The callbacks of a run."""

    def __init__(self, recipe: Recipe, run: Path, rank: int, ranks: int) -> None:
        self._all = [found(recipe, run, rank, ranks) for found in callback_classes(recipe.loop.callbacks)]

    def __bool__(self) -> bool:
        return bool(self._all)

    def call(self, hook: str, step: int, *values: Any) -> None:
        """Call a method of each callback. Mappings are copied, so that callbacks cannot change each other's."""
        for callback in self._all:
            copies = (dict(value) if isinstance(value, Mapping) else value for value in values)
            getattr(callback, hook)(step, *copies)


def callback_classes(names: Sequence[str]) -> list[type[Callback]]:
    """Import the classes that `loop.callbacks` names.

    Raises:
        UsageError: one cannot be imported, or is no subclass of `Callback`.
    """
    classes = []
    for name in names:
        found = user_code.load(name, "loop.callbacks")
        if not (isinstance(found, type) and issubclass(found, Callback)):
            raise UsageError(f"loop.callbacks: {name!r} is not a subclass of trainer.Callback")
        classes.append(found)
    return classes
