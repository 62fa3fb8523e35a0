"""Rows spread over a corpus, the same ones each time, and how many there are."""

from __future__ import annotations

from typing import Any

from trainer.data.counter_rng import uniform
from trainer.data.sources import Row, Source

SAMPLE = 2_000_000  # characters of the rows that are looked at, up to twice as many
COUNTED = 100_000  # rows read one by one; beyond, their number is estimated by bytes


class _Stream:
    """Rows of a shard that were kept, as the lanes read them."""

    def __init__(self, rows: list[Row], at: int) -> None:
        self._rows, self._at = rows, at

    def state(self) -> int:
        return self._at

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Row:
        if self._at == len(self._rows):
            raise StopIteration
        self._at += 1
        return self._rows[self._at - 1]


class Sample(Source):
    """Rows spread over the corpus, the same ones each time: all of them where they are few."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.shards)
        self._source = source
        self.rows_of: list[list[Row]] = [[] for _ in source.shards]
        self.share = 1.0  # of the rows read, kept
        self.read = 0
        self.estimate: int | None = None  # of all rows, where not all were read

    @property
    def whole(self) -> bool:
        return self.share == 1.0 and self.estimate is None

    @property
    def kept(self) -> int:
        return sum(map(len, self.rows_of))

    def stream(self, shard: int, state: Any = None) -> Any:
        return _Stream(self.rows_of[shard], state or 0)

    def fill(self) -> Sample:
        """Keeps a row by a hash of its place; halves the share whenever there are too many."""
        characters = 0
        for shard in range(len(self.shards)):
            stream = self._source.stream(shard)
            for row in stream:
                self.read += 1
                if uniform("plan", *row.id) < self.share:
                    self.rows_of[shard].append(row)
                    characters += _characters(row)
                if characters > 2 * SAMPLE:
                    characters = self._halve()
                if self.read >= COUNTED:
                    self.estimate = self._estimated(shard, stream.state())
                    return self
        return self

    def _halve(self) -> int:
        self.share /= 2
        self.rows_of = [[r for r in rows if uniform("plan", *r.id) < self.share] for rows in self.rows_of]
        return sum(_characters(row) for rows in self.rows_of for row in rows)

    def _estimated(self, shard: int, state: dict[str, Any]) -> int:
        """By the bytes read, or of parquet files as they say themselves."""
        if all(s.format in ("parquet", "prepared") for s in self.shards):
            return sum(_parquet_rows(s.urls[0]) for s in self.shards)
        sizes = [s.size or 0 for s in self.shards]
        done = sum(sizes[:shard]) + min(sizes[shard], sum(state["offsets"]))
        return max(self.read, round(self.read * sum(sizes) / done)) if done else self.read


def _characters(row: Row) -> int:
    return sum(len(v) for v in row.values.values() if isinstance(v, str))


def _parquet_rows(url: str) -> int:
    import fsspec
    import pyarrow.parquet as parquet

    with fsspec.open(url, "rb") as file:
        return int(parquet.ParquetFile(file).metadata.num_rows)
