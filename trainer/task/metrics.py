"""The metrics of a task in one table: names, meanings, formats, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BETTER = {"max": "Higher is better.", "min": "Lower is better.", None: ""}


@dataclass(frozen=True)
class Metric:
    """A metric in metrics.json.

    Attributes:
        key: its key in metrics.json.
        direction: which values are better; None = it cannot select a checkpoint.
        name: its name in reports; empty = no headline number, only a line of the table of all numbers.
        meaning: how to read it, in one sentence.
        form: how it is written.
        scale: ends of its bar; None = no natural ends.
        share_of_rows: it is the share of rows that are right, whose interval follows from the number of rows.
    """

    key: str
    direction: Literal["min", "max"] | None
    name: str = ""
    meaning: str = ""
    form: str = "{:.3f}"
    scale: tuple[float, float] | None = None
    share_of_rows: bool = False

    @property
    def label(self) -> str:
        """Its name, also of one that is no headline number: "average_precision" is "Average precision"."""
        return self.name or self.key.replace("_", " ").capitalize()

    @property
    def better(self) -> str:
        """Which direction is better, in words."""
        return BETTER[self.direction]

    def text(self, value: float) -> str:
        """The value as reports show it."""
        return self.form.format(value)
