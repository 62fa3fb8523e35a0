"""One file as a stream of records, read in chunks and never whole: the part below `sources.py` that knows bytes.

Why not the readers of `datasets` for lines: they decode a whole chunk at once, so one bad byte fails a file without
naming a row, and they end a line at "\\r" or U+0085 too. Here a line ends at "\\n" only, every record carries the
position that follows it, and whatever is wrong with a record is said about that record alone.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, BinaryIO

import fsspec
import zstandard

# A line, a CSV record or a field of this many bytes or more is not a sentence or a review: it is a bad row.
MAX_LINE_BYTES = 1_000_000
CHUNK_BYTES = 1 << 18
ZST_BYTES = 1 << 10  # compressed bytes that are decompressed at once: they make 32 MiB at most
# A file that makes more of its bytes than this is refused. Text is compressed to a third or a tenth.
BOMB_RATIO, BOMB_BYTES = 500, 100_000_000
EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSIONS = (".gz", ".zst")
# Values, and what is wrong with the record (then without values), as "kind: detail": kinds are counted.
Parsed = tuple[dict[str, object], str | None]


class BadFile(Exception):
    """The file as a whole cannot be read; the text says why, the caller adds its name."""


def without_compression(name: str) -> str:
    """The name without a trailing .gz or .zst."""
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    return name


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """The file behind any fsspec URL, as its bytes are."""
    system, path = fsspec.core.url_to_fs(url)
    with system.open(path, "rb") as file:
        yield file


def chunks(url: str, offset: int = 0) -> Iterator[bytes]:
    """The file from byte `offset` of its decompressed content on, decompressed by its extension."""
    with opened(url) as file:
        if without_compression(url) == url:
            file.seek(offset)
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
            return
        size = 0
        for chunk in _zst_chunks(file) if url.endswith(".zst") else _gzip_chunks(file):
            size += len(chunk)
            if size > max(BOMB_BYTES, BOMB_RATIO * file.tell()):
                raise BadFile(
                    f"its first {file.tell():,} bytes decompress to more than {size:,}, over {BOMB_RATIO} times as "
                    "many: it is a decompression bomb, or one row over and over. Store rows uncompressed if it is real"
                )
            if offset < len(chunk):
                yield chunk[offset:] if offset else chunk
            offset = max(0, offset - len(chunk))


def _gzip_chunks(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file, mode="rb") as content:
        yield from iter(lambda: content.read(CHUNK_BYTES), b"")


def _zst_chunks(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a Zstandard file, in chunks of at most CHUNK_BYTES.

    `stream_reader` of zstandard ends silently in a file that was cut short. A few bytes may stand for a block of
    128 KiB, so that the decompressor gets little at once.
    """
    frame = None
    while data := file.read(ZST_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            content = frame.decompress(data)
            for begin in range(0, len(content), CHUNK_BYTES):
                yield content[begin : begin + CHUNK_BYTES]
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise BadFile("the file ends within a compressed frame: it was cut short")


def lines(url: str, offset: int = 0) -> Iterator[tuple[bytes | int, int]]:
    """Lines from byte `offset` of the decompressed file, without "\\n", each with the offset that follows it.

    A line of MAX_LINE_BYTES or more is not kept: its length stands in its place.
    """
    rest, dropped = b"", 0
    for chunk in chunks(url, offset):
        *parts, rest = (rest + chunk).split(b"\n")
        for line in parts:
            size = dropped + len(line)
            yield (_whole(line, offset) if size < MAX_LINE_BYTES else size), offset + size + 1
            offset, dropped = offset + size + 1, 0
        if dropped or len(rest) >= MAX_LINE_BYTES:
            dropped, rest = dropped + len(rest), b""
    if rest or dropped:
        yield dropped or _whole(rest, offset), offset + dropped + len(rest)


def _whole(line: bytes, offset: int) -> bytes:
    return line if offset else line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no text


def json_records(url: str, offsets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Raw lines of a JSON Lines file; blank ones are no rows."""
    for line, at in lines(url, *offsets):
        if isinstance(line, int) or line.strip():
            yield {"raw": line, "at": (at,)}


def parse_json(raw: bytes | int) -> Parsed:
    """One line of JSON Lines."""
    if isinstance(raw, int):
        return {}, _too_long(raw)
    if b"\0" in raw:
        return {}, "NUL byte"
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"invalid UTF-8: at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if not isinstance(values, dict):
        return {}, f"not a JSON object: {type(values).__name__}, where one object per line is read"
    return values, None


def text_records(urls: Sequence[str], offsets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Raw lines of parallel text files, one from each; None where a file has ended before the others."""
    at = list(offsets) or [0] * len(urls)
    for row in zip_longest(*(lines(url, offset) for url, offset in zip(urls, at, strict=True))):
        for i, one in enumerate(row):
            if one is not None:
                at[i] = one[1]
        yield {"raw": tuple(one and one[0] for one in row), "at": tuple(at)}


def parse_text(raw: Sequence[bytes | int | None], roles: Sequence[str]) -> Parsed:
    """One line of each of the parallel text files; a trailing "\\r" is dropped, nothing else."""
    values: dict[str, object] = {}
    for role, line in zip(roles, raw, strict=True):
        if line is None:
            return {}, f"one-sided pair: the file of {role!r} has ended"
        if isinstance(line, int):
            return {}, f"{_too_long(line)}, {role!r}"
        try:
            values[role] = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            return {}, f"invalid UTF-8: at byte {error.start} of the line, {role!r}"
    return values, None


_QUOTED = "; a value that begins with a quotation mark must end with one, and double those within"


class _TooLong(Exception):
    """A CSV record that passes MAX_LINE_BYTES; the text says its length."""


class _Feed:
    """The decoded lines of one CSV file, as `csv.reader` asks for them; `at`: where the last one ended."""

    def __init__(self, url: str, offset: int = 0):
        self._lines, self.at = lines(url, offset), offset
        self.begin()

    def begin(self) -> None:
        """A new record begins."""
        self._size, self.count, self.decodable = 0, 0, True

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line, self.at = next(self._lines)
        self.count += 1
        self._size += line if isinstance(line, int) else len(line) + 1
        if isinstance(line, int) or self._size > MAX_LINE_BYTES:
            raise _TooLong(_too_long(self._size))
        try:
            return line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            self.decodable = False
            return line.decode("utf-8", "surrogateescape") + "\n"


def csv_records(url: str, offsets: Sequence[int], delimiter: str) -> Iterator[dict[str, Any]]:
    """Parsed records of a CSV file with a header; a quoted field may hold newlines; blank lines are no rows.

    A field that begins with a quotation mark must end with the next one that is not doubled. Read leniently it would
    lose its marks, and take lines into itself that are records.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # global to the process; ours stops earlier
    feed = _Feed(url)
    header = _header(feed, delimiter)
    if offsets and offsets[0] > feed.at:
        feed = _Feed(url, *offsets)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            yield {"raw": ({}, f"{_lines(feed)} no record: {error}{_QUOTED}"), "at": (feed.at,)}
            continue
        if fields:
            yield {"raw": _record(header, fields, feed, delimiter), "at": (feed.at,)}


def _header(feed: _Feed, delimiter: str) -> list[str]:
    try:
        header = next(csv.reader(feed, delimiter=delimiter), [])
    except (csv.Error, _TooLong) as error:
        raise BadFile(f"the header cannot be read: {error}") from None
    if not feed.decodable:
        raise BadFile("the header is not UTF-8")
    if len(set(header)) < len(header):
        raise BadFile(f"a column stands twice in the header {header}")
    return header


def _lines(feed: _Feed) -> str:
    return "a line is" if feed.count == 1 else f"{feed.count} lines are"


def _record(header: list[str], fields: list[str], feed: _Feed, delimiter: str) -> Parsed:
    for name, field in zip(header, fields, strict=False):
        if delimiter == "\t" and "\t" in field and "\n" in field:  # in a text by intent neither is likely
            return {}, f"{_lines(feed)} one value, with tabs, of column {name!r}{_QUOTED}"
    if not feed.decodable:
        bad = [name for name, field in zip(header, fields, strict=False) if not _encodable(field)]
        return {}, f"invalid UTF-8 in column {bad[0]!r}" if bad else "invalid UTF-8"
    if len(fields) != len(header):
        return {}, f"wrong number of fields: {len(fields)}, where the header has {len(header)}"
    return dict(zip(header, fields, strict=True)), None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_long(size: int) -> str:
    return f"too long: {size} bytes, where {MAX_LINE_BYTES} or more are no row"


@contextmanager
def scratch_cache() -> Iterator[str]:
    """A folder for the lock files that `datasets` writes when it opens a stream, removed as soon as that is open.

    Its own cache is below the home directory, which may not be writable, and keeps a lock file for each stream.
    """
    with tempfile.TemporaryDirectory(prefix="rankzero-datasets-") as folder:
        yield folder


def parquet_batches(url: str, row: int) -> Iterator[list[Parsed]]:
    """Rows of a parquet file from `row` on, a thousand at a time; row groups before it are not read."""
    import pyarrow.parquet as pq
    from datasets import load_dataset

    with opened(url) as file:
        metadata = pq.ParquetFile(file).metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if row >= sum(sizes):
        return
    # `datasets` takes a pattern: the name is escaped. `reshard` makes each row group a shard of its own.
    with scratch_cache() as cache:
        stream = load_dataset(
            "parquet", data_files=[glob.escape(url)], split="train", streaming=True, batch_size=1000, cache_dir=cache
        )
    groups = stream.with_format("arrow").reshard()
    for group, size in enumerate(sizes):
        if row < size:
            # `iter`, not `__iter__`: the latter divides the shards among DataLoader workers, and lanes already do.
            for table in groups.shard(num_shards=len(sizes), index=group).iter(batch_size=1000):
                if row < len(table):
                    yield _table_rows(table.slice(row))
                row = max(0, row - len(table))
        else:
            row -= size


def _table_rows(table: Any) -> list[Parsed]:
    try:
        return [(values, None) for values in table.to_pylist()]
    except UnicodeDecodeError:
        return [_table_row(table.slice(i, 1)) for i in range(len(table))]


def _table_row(table: Any) -> Parsed:
    values: dict[str, object] = {}
    for name in table.column_names:
        try:
            values[name] = table.column(name)[0].as_py()
        except UnicodeDecodeError:
            return {}, f"invalid UTF-8 in column {name!r}"
    return values, None
