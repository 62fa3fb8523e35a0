"""Bytes and lines of a file: opened by URL, decompressed, converted to UTF-8, in chunks and never as a whole.

A line ends at "\\n" only, and has the byte offset that follows it. The line readers of `datasets` decode a whole
chunk at once, so that one bad byte fails a file without naming a row. They also end a line at "\\r" or U+0085.
"""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import fsspec
import zstandard

from trainer.data.roles import MAX_CHARACTERS
from trainer.data.store import Store

if TYPE_CHECKING:
    from trainer.data.sniffing import Form

MAX_LINE_BYTES = MAX_CHARACTERS  # a line, a CSV record or a field of this size or more is a bad row
CHUNK_BYTES = 1 << 18
SHORT_BYTES = 1 << 16  # the same where only the first rows of a file are read
ZST_BYTES = 1 << 10  # compressed bytes that are decompressed at once: to 32 MiB at most
# A file is refused if it decompresses to more. Text is compressed to a third or a tenth.
BOMB_RATIO, BOMB_BYTES = 500, 100_000_000
EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
COMPRESSIONS = (".gz", ".zst")
OTHER_ENCODING = "; for a file in another encoding set data.encoding, such as cp1252 or latin-1"


# Files that are open in this thread within `first_bytes`, by URL. None outside of it.
short_reads: ContextVar[dict[str, Any] | None] = ContextVar("short_reads", default=None)


class Parsed(NamedTuple):
    """One record of a file.

    Attributes:
        values: by column; empty if there is a problem.
        problem: what is wrong with the record, as "reason: detail"; reasons are counted.
        lines: lines that a record with a problem takes.
    """

    values: dict[str, object]
    problem: str | None = None
    lines: int = 1


class BadFile(Exception):
    """A file that cannot be read. The text says why; the caller adds the name of the file."""


def without_compression(name: str) -> str:
    """Return the name without a trailing .gz or .zst."""
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    return name


def located(url: str) -> tuple[Any, str]:
    """Return the file system of a path or fsspec URL, and the path there. Calls to a remote one are retried.

    fsspec reads "::" as a chain of URLs. It is part of a name unless another protocol follows it.
    """
    system, path = _located(url)
    return (system if is_local(system) else Store(system)), path


def is_local(system: Any) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in ([system.protocol] if isinstance(system.protocol, str) else system.protocol)


def _located(url: str) -> tuple[Any, str]:
    if "://" in url.rpartition("::")[2] and "::" in url:
        return fsspec.core.url_to_fs(url)
    protocol = url.partition("://")[0] if "://" in url else "file"
    if "::" in protocol or "::" not in url:
        return fsspec.core.url_to_fs(url)
    system = fsspec.get_filesystem_class(protocol)
    return system(**system._get_kwargs_from_urls(url)), system._strip_protocol(url)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """Open the file of any fsspec URL, without decompressing it."""
    system, path = located(url)
    kept = short_reads.get()
    if kept is None:
        with system.open(path, "rb") as file:
            yield file
        return
    if url in kept:
        try:
            kept[url].seek(0)
        except (OSError, ValueError):  # a stream, such as that of a server without ranges
            kept.pop(url).close()
    if url not in kept:
        kept[url] = system.open(path, "rb", block_size=SHORT_BYTES)
    yield kept[url]


@contextmanager
def first_bytes() -> Iterator[None]:
    """Read little at a time within the block, in this thread, and each file by one open.

    A store would read megabytes ahead for one row, and the same bytes again for the next question about a file.
    """
    if short_reads.get() is not None:  # within another block, which closes the files
        yield
        return
    token = short_reads.set({})
    try:
        yield
    finally:
        for file in (short_reads.get() or {}).values():
            file.close()
        short_reads.reset(token)


def chunks(url: str, offset: int = 0, compression: str | None = None) -> Iterator[bytes]:
    """Yield the file from byte `offset` of its decompressed content.

    Args:
        url: of the file.
        offset: in bytes.
        compression: ".gz", ".zst" or "" for none; None: by the extension.

    Raises:
        BadFile: it is a decompression bomb, or a compressed frame is cut.
    """
    if compression is None:
        compression = next((ending for ending in COMPRESSIONS if url.endswith(ending)), "")
    with opened(url) as file:
        if not compression:
            file.seek(offset)
            size = CHUNK_BYTES if short_reads.get() is None else SHORT_BYTES
            yield from iter(lambda: file.read(size), b"")
            return
        size = 0
        for chunk in _zst_chunks(file) if compression == ".zst" else _gzip_chunks(file):
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
    with gzip.GzipFile(fileobj=file, mode="rb") as decompressed:
        yield from iter(lambda: decompressed.read(CHUNK_BYTES), b"")


def _zst_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield all frames of a Zstandard file, in chunks of at most CHUNK_BYTES.

    `stream_reader` of zstandard ends without an error in a cut file. A few bytes can hold a block of 128 KiB, so that
    the decompressor gets little at once.
    """
    frame = None
    while data := file.read(ZST_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            decompressed = frame.decompress(data)
            for begin in range(0, len(decompressed), CHUNK_BYTES):
                yield decompressed[begin : begin + CHUNK_BYTES]
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise BadFile("the file ends within a compressed frame: it was cut short")


def content(url: str, offset: int = 0, form: Form | None = None) -> Iterator[bytes]:
    """Yield the file as UTF-8, with "\\n" for line ends that are "\\r" alone, from byte `offset` of that.

    Another encoding is converted from the start of the file. Bytes that are not valid in it make invalid UTF-8.
    """
    if form is None:
        yield from chunks(url, offset)
    elif form.encoding in ("utf-8", "ascii"):
        for chunk in chunks(url, offset, form.compression):
            yield chunk.replace(b"\r", b"\n") if form.cr else chunk
    else:
        for chunk in _converted(chunks(url, 0, form.compression), form.encoding):
            if offset < len(chunk):
                yield chunk[offset:].replace(b"\r", b"\n") if form.cr else chunk[offset:]
            offset = max(0, offset - len(chunk))


def _converted(source: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in source:
        yield decoder.decode(chunk).encode("utf-8", errors)
    yield decoder.decode(b"", final=True).encode("utf-8", errors)


def lines(url: str, offset: int = 0, form: Form | None = None) -> Iterator[tuple[bytes | int, int]]:
    """Yield lines from byte `offset` of the decompressed file, without "\\n", each with the offset that follows it.

    A line of MAX_LINE_BYTES or more is not kept: its length is yielded instead.
    """
    rest, dropped = b"", 0
    for chunk in content(url, offset, form):
        *parts, rest = (rest + chunk).split(b"\n")
        for line in parts:
            size = dropped + len(line)
            yield (_without_mark(line, offset) if size < MAX_LINE_BYTES else size), offset + size + 1
            offset, dropped = offset + size + 1, 0
        if dropped or len(rest) >= MAX_LINE_BYTES:
            dropped, rest = dropped + len(rest), b""
    if dropped or _without_mark(rest, offset):
        yield dropped or _without_mark(rest, offset), offset + dropped + len(rest)


def _without_mark(line: bytes, offset: int) -> bytes:
    """Return a line without a byte order mark, which only the first line of a file can have."""
    return line if offset else line.removeprefix(b"\xef\xbb\xbf")


def too_long(size: int) -> str:
    """Return the reason why a line or record of this size is bad."""
    return f"too long: {size} bytes; fewer than {MAX_LINE_BYTES} are allowed"
