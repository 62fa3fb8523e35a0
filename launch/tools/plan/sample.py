"""The first rows of a large corpus in place of all, and how many there are: as the files say it, or estimated."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from trainer.data.discovery import Shard, own_root
from trainer.data.heads import first_heads, heads
from trainer.data.sources import MixedSource, Row, Source
from trainer.recipe.sections import DataConfig

ROWS = 20_000  # of each corpus
LANE_ROWS = 1_000  # of a lane, about: more lanes would only have the last, smaller micro-batches of an epoch
METADATA, ESTIMATED = "by the metadata of the files", "estimated by the size of the files"


class Sample(NamedTuple):
    """The first rows of a corpus.

    Attributes:
        source: of these rows.
        rows: of each corpus, all of them. read: those of the sample.
        characters: of the texts of the sample.
        origin: of `rows`.
    """

    source: Source
    rows: list[int]
    read: list[int]
    characters: int
    origin: str


class FirstRows(Source):
    """The first rows of some files of a source, in memory.

    Attributes:
        read: their number.
        estimate: how many rows all files have, about, by the bytes that these rows take.
    """

    def __init__(self, source: Source, first: int) -> None:
        self._rows: list[list[Row]] = []
        shards, taken, packed = list[Shard](), 0, 1.0
        for index, head in first_heads(source, ROWS):
            rows = list(head)
            if rows:
                self._rows.append([replace(row, id=(first + len(shards), row.id[1])) for row in rows])
                shards.append(source.shards[index])
                taken += sum(head.offsets) or sum(map(_characters, rows))
                if head.form.compression:
                    packed = _compressed_share(rows)
        super().__init__(shards, source.reading, first)
        stored, self.read = sum(shard.size or 0 for shard in source.shards), sum(map(len, self._rows))
        self.estimate = max(self.read, round(stored * self.read / max(1.0, taken * packed)))

    @property
    def characters(self) -> int:
        """The characters of all texts."""
        return sum(_characters(row) for rows in self._rows for row in rows)

    def stream(self, shard: int, state: dict[str, Any] | None = None) -> Any:
        return _Stream(iter(self._rows[shard]))


class _Stream:
    """An iterator of rows that is never resumed."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Row:
        return next(self._rows)

    def state(self) -> dict[str, Any]:
        return {}


def sampled(data: DataConfig, source: Source) -> Sample:
    """Return the first rows of a corpus, and how many there are.

    Raises:
        DataError: a file is damaged or not what its name says.
    """
    parts = source.parts if isinstance(source, MixedSource) else [source]
    samples = list[FirstRows]()
    for part in parts:
        samples.append(FirstRows(part, sum(len(sample.shards) for sample in samples)))
    root = None if data.mix else own_root(data)
    prepared = None if root is None else root.prepared()
    if prepared is not None:
        numbers: list[int | None] = [int(prepared["splits"]["train"]["rows"])]
    else:
        numbers = [_by_metadata(part) for part in parts]
    origin = ESTIMATED if None in numbers else METADATA
    rows = [sample.estimate if number is None else number for sample, number in zip(samples, numbers, strict=True)]
    first: Source = samples[0]
    if isinstance(source, MixedSource):
        first = MixedSource(dict(zip(source.names, source.sections, strict=True)), samples)
    read, characters = [sample.read for sample in samples], sum(sample.characters for sample in samples)
    return Sample(first, rows, read, characters, origin)


def lanes_of_sample(lanes: int, fused: int) -> int:
    """Return how many lanes the first rows are dealt to: whole groups of those that are fused."""
    return max(fused, min(lanes, ROWS // LANE_ROWS) // fused * fused)


def _by_metadata(source: Source) -> int | None:
    numbers = [head.rows for head in heads(source, 0, count=True)]
    return None if None in numbers else sum(filter(None, numbers))


def _characters(row: Row) -> int:
    return sum(len(value) for value in row.values.values() if isinstance(value, str))


def _compressed_share(rows: list[Row]) -> float:
    text = "\n".join(str(row.values) for row in rows).encode("utf-8", "surrogatepass")
    return len(zlib.compress(text)) / max(1, len(text))
