"""The bad rows of a file for messages: rows with the same mistake are one sentence, with their number and places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from trainer.data.cleaning import BadRow
from trainer.data.discovery import Shard
from trainer.data.line_numbers import Span, lines_of
from trainer.data.sniffing import Form

MISTAKES = 10  # different mistakes that a message quotes
PLACES = 3  # rows of a mistake that it names


@dataclass
class BadRows:
    """The first few mistakes in the rows of a file.

    Attributes:
        quoted: the first rows of each mistake in the order of the file, each with its place in bytes.
        counts: mistake -> rows.
    """

    quoted: list[tuple[BadRow, Span]] = field(default_factory=list)
    counts: Counter[BadRow] = field(default_factory=Counter)

    def add(self, row: BadRow, span: Span) -> None:
        mistake = row.mistake
        if mistake in self.counts or not self.full:
            self.counts[mistake] += 1
            if self.counts[mistake] <= PLACES:
                self.quoted.append((row, span))

    @property
    def full(self) -> bool:
        """Whether another mistake is not counted."""
        return len(self.counts) >= MISTAKES

    @property
    def total(self) -> int:
        """The rows counted."""
        return self.counts.total()

    def sentences(self, shard: Shard, form: Form, most: int = MISTAKES) -> list[str]:
        """Return a sentence for each mistake, in the order of their first rows."""
        lines = lines_of(shard, form, [span for _, span in self.quoted])
        places: dict[BadRow, list[str]] = {}
        first: dict[BadRow, str] = {}
        for (row, _), line in zip(self.quoted, lines, strict=True):
            first.setdefault(row.mistake, row.describe(shard.name, line))
            places.setdefault(row.mistake, []).append(row.place(line))
        return [
            first[mistake] if count == 1 else mistake.describe_all(shard.name, count, places[mistake])
            for mistake, count in list(self.counts.items())[:most]
        ]
