"""The first rows of every file of a split, and the number of rows where a file says it, by few short reads.

Files are opened by several threads at once, since a remote store takes a while to answer. The rows are in the order of
the files, whichever thread is first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from trainer.data import formats
from trainer.data.embedded import generated_count
from trainer.data.formats import is_local
from trainer.data.sniffing import Form
from trainer.data.sources import Row, Source, damaged
from trainer.data.tables import first_rows_bytes
from trainer.errors import RankzeroError

PARQUET = ("parquet", "prepared")
THREADS = 32  # files that are open at once
FILE_ROWS = 100  # rows that are read of a file, at least: opening it takes longer than reading them
TABLE_ROWS = 500  # the same of Parquet, whose pages hold more
WINDOW = 4 * THREADS  # files whose first rows are in memory
# Bytes of a file that its first rows take at most, and the share of a larger file.
HEAD_BYTES, HEAD_SHARE = 1 << 16, 1 / 4000
# Bytes of the first rows of all Parquet files: if they would take more, and more than HEAD_SHARE, some are left out.
TABLE_BYTES = 1 << 26


@dataclass
class Head:
    """The first rows of a file. It is iterated as a `ShardStream`: each row sets `offsets`.

    Attributes:
        form: of the first file of the shard.
        complete: whether these are all rows of the file.
        rows: rows of the file as its metadata say. None if they do not.
    """

    form: Form
    complete: bool
    rows: int | None
    _read: list[tuple[Row, tuple[int, ...]]]
    offsets: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        for row, offsets in self._read:
            self.offsets = offsets
            yield row


def heads(
    source: Source, rows: int, *, least: int = 0, every: int = 1, count: bool = False, bounded: bool = True
) -> Iterator[Head]:
    """Yield the first rows of files, in order.

    Args:
        source: of a split.
        rows: of each file, at most; more if those of all files are fewer than `least`.
        least: rows of all files, about.
        every: 1 for all files, k for one of k.
        count: whether the number of rows in the metadata is read, too.
        bounded: stop at HEAD_BYTES or HEAD_SHARE of a file with long rows. Of Parquet files, whose first rows take the
            same bytes however few they are, one of several is read. The others have no rows, but their number.

    Raises:
        DataError: a file is damaged or not what its name says.
    """
    numbers = range(0, len(source.shards), every)

    def head(place: int) -> Head:
        index = numbers[place]
        shard = source.shards[index]
        most = max(HEAD_BYTES, (shard.size or 0) * HEAD_SHARE) if bounded else float("inf")
        with formats.first_bytes():
            counted, size = _facts(source, index) if count or (bounded and shard.format in PARQUET) else (None, 0)
            one_of = max(1, math.ceil(size / max(most, TABLE_BYTES / len(numbers))))
            if not rows or place % one_of:
                return Head(Form(), False, counted if count else None, [])
            wanted = max(rows, -(-least * one_of // len(numbers)))
            stream, read, complete = source.stream(index), list[tuple[Row, tuple[int, ...]]](), False
            while len(read) < wanted and sum(stream.offsets) < most:
                row = next(stream, None)
                if complete := row is None:
                    break
                read.append((row, stream.offsets))
            return Head(stream.form, complete, counted if count else None, read)

    with ThreadPoolExecutor(min(THREADS, len(numbers) or 1)) as pool:
        for begin in range(0, len(numbers), WINDOW):
            yield from pool.map(head, range(begin, min(begin + WINDOW, len(numbers))))


def first_rows(source: Source, rows: int) -> Iterator[Row]:
    """Yield about so many rows: equally many first ones of all files, or of as many as give FILE_ROWS each."""
    for _, head in first_heads(source, rows):
        yield from head


def first_heads(source: Source, rows: int) -> Iterator[tuple[int, Head]]:
    """Yield the same by file: its number, and its first rows."""
    of_file = TABLE_ROWS if any(shard.format in PARQUET for shard in source.shards) else FILE_ROWS
    every = max(1, len(source.shards) * of_file // rows)
    each = -(-rows * every // max(1, len(source.shards)))
    numbers = range(0, len(source.shards), every)
    yield from zip(numbers, heads(source, each, every=every, bounded=False), strict=True)


def _facts(source: Source, index: int) -> tuple[int | None, int]:
    """Return the number of rows that the metadata of a file say, good or bad, and the bytes of its first ones.

    The first is None if the metadata do not say it, and the second is 0 where only what is needed is read.

    Raises:
        DataError: the file is damaged.
    """
    shard = source.shards[index]
    if shard.format == "embedded":
        return generated_count(shard.urls[0]), 0
    if shard.format not in (*PARQUET, "arrow"):
        return None, 0
    try:
        with formats.opened(shard.urls[0]) as file:
            if shard.format == "arrow":
                return _arrow_rows(shard.urls[0], file), 0
            with pq.ParquetFile(file) as parquet:
                reading = None if shard.format == "prepared" else source.reading
                return int(parquet.metadata.num_rows), first_rows_bytes(parquet, reading)
    except RankzeroError:
        raise
    except Exception as error:  # a store may raise anything about this file
        source.forms(index)  # raises what the file is, if it is no table
        raise damaged(shard, 0, error) from error


def _arrow_rows(url: str, file: Any) -> int | None:
    """Return the rows of an Arrow file by its footer. A stream lacks it and is mapped if it is on this machine."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        return int(ds.IpcFileFormat().make_fragment(file).count_rows())
    system, path = formats.located(url)
    if not is_local(system):
        return None
    with pa.memory_map(path) as mapped, pa.ipc.open_stream(mapped) as stream:
        return sum(batch.num_rows for batch in stream)
