"""Types of values that only classification reads: a set of labels, and the weight of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.data.roles import BadValue, Cleaner, Labels, Number


@dataclass(frozen=True)
class LabelSet(Labels):
    """The labels of a row, each once, in the order of the file. There may be none.

    Attributes:
        separator: files hold one text with this separator; None = a list, or a JSON list as a text.
    """

    separator: str | None = None

    def convert(self, raw: object, clean: Cleaner) -> list[str]:
        if self.separator is not None and (raw is None or isinstance(raw, str)):
            raw = [part.strip() for part in (raw or "").split(self.separator) if part.strip()]
        elif raw is None:
            raise BadValue("is null", ". Write [] for a row without labels")
        return list(dict.fromkeys(super().convert(raw, clean)))


@dataclass(frozen=True)
class RowWeight(Number):
    """How often a row counts in the loss: a number from 0. Only training rows need it."""

    optional: ClassVar[bool] = True
    synonyms: ClassVar[str] = "weight weights sample_weight importance"

    def convert(self, raw: object, clean: Cleaner) -> float:
        weight = super().convert(raw, clean)
        if weight < 0:
            raise BadValue(
                "is negative", f": {weight:g}. Write a weight of 0 or more; 0 leaves the row out of the loss"
            )
        return weight
