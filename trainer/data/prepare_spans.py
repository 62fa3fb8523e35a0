"""Ranges of the files of a corpus that different processes of `rankzero prepare` read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from trainer.data import formats
from trainer.data.sources import Source, Split

CHUNK_ROWS = 20_000  # rows read that make a chunk, which one process has in memory
INDEXED_BYTES = 4_000_000  # of a file that is divided among processes, and of a corpus for which they are started
LINES = ("jsonl", "csv", "tsv", "text", "conll")


@dataclass(frozen=True)
class Span:
    """A range of rows of a file, which one process reads.

    Attributes:
        shard: the number of the file.
        state: of a `ShardStream` where it begins; None for the start of the file.
        rows: None for all up to the end.
    """

    split: Split
    shard: int
    state: dict[str, Any] | None = None
    rows: int | None = None

    @property
    def first(self) -> int:
        return self.state["row"] if self.state else 0


def spans(source: Source, split: Split, shard: int) -> Iterator[Span]:
    """Yield the ranges of a file that can be read independently. Compressed files and others that cannot are one."""
    state: dict[str, Any] | None = None
    for following in _boundaries(source, shard):
        yield Span(split, shard, state, following["row"] - (state["row"] if state else 0))
        state = following
    yield Span(split, shard, state)


def _boundaries(source: Source, shard: int) -> Iterator[dict[str, Any]]:
    """Yield stream states about CHUNK_ROWS rows apart, without cleaning a row."""
    about, forms = source.shards[shard], source.forms(shard)
    if (about.size or 0) < INDEXED_BYTES:
        return
    if about.format == "parquet":
        yield from _row_groups(about.urls[0])
    elif about.format not in LINES or any(f.compression or f.encoding not in ("utf-8", "ascii") for f in forms):
        return
    elif about.format == "jsonl" and not forms[0].array:
        lines = formats.lines(about.urls[0], 0, forms[0])
        ends = (at for line, at in lines if isinstance(line, int) or line.strip())  # a blank line is not a row
        for row, at in enumerate(ends, start=1):
            if not row % CHUNK_ROWS:
                yield {"row": row, "offsets": [at]}
    else:
        stream = source.stream(shard)
        for number, _ in enumerate(stream, start=1):
            if not number % CHUNK_ROWS:
                yield stream.state()


def _row_groups(url: str) -> Iterator[dict[str, Any]]:
    """Yield the ends of row groups: in the middle of one, a reader would decode its beginning again."""
    with formats.opened(url) as file, pq.ParquetFile(file) as table:
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    row = last = 0
    for size in sizes[:-1]:
        row += size
        if row - last >= CHUNK_ROWS:
            yield {"row": row, "offsets": []}
            last = row
