"""One file as a stream of records, read in chunks and never whole: the part below `sources.py` that knows bytes.

CSV is in `csv_files.py`, JSON arrays in `json_arrays.py`, Parquet and Arrow in `tables.py`.

Why not the readers of `datasets` for lines: they decode a whole chunk at once, so one bad byte fails a file without
naming a row, and they end a line at "\\r" or U+0085 too. Here a line ends at "\\n" only, every record carries the
position that follows it, and whatever is wrong with a record is said about that record alone.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
import zstandard

if TYPE_CHECKING:
    from trainer.data.sniffing import Form

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
    ".arrow": "arrow",
    ".txt": "text",
}
COMPRESSIONS = (".gz", ".zst")
# Values, and what is wrong with the record (then without values), as "kind: detail": kinds are counted.
Parsed = tuple[dict[str, object], str | None]


OTHER_ENCODING = "; for a file in another encoding set data.encoding, such as cp1252 or latin-1"
_ESCAPED = re.compile(r'\\(["\\])')


class BadFile(Exception):
    """The file as a whole cannot be read; the text says why, the caller adds its name."""


def without_compression(name: str) -> str:
    """The name without a trailing .gz or .zst."""
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    return name


def located(url: str) -> tuple[Any, str]:
    """Return the file system behind a path or fsspec URL, and the path there.

    fsspec takes "::" for a chain of URLs. It is part of a name unless another protocol follows it.
    """
    if "://" in url.rpartition("::")[2] and "::" in url:
        return fsspec.core.url_to_fs(url)
    protocol = url.partition("://")[0] if "://" in url else "file"
    if "::" in protocol or "::" not in url:
        return fsspec.core.url_to_fs(url)
    kind = fsspec.get_filesystem_class(protocol)
    return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """The file behind any fsspec URL, as its bytes are."""
    system, path = located(url)
    with system.open(path, "rb") as file:
        yield file


def chunks(url: str, offset: int = 0, compression: str | None = None) -> Iterator[bytes]:
    """The file from byte `offset` of its decompressed content on.

    Args:
        url: of the file.
        offset: in bytes.
        compression: ".gz", ".zst" or "" for none; None for what the extension says.
    """
    if compression is None:
        compression = next((ending for ending in COMPRESSIONS if url.endswith(ending)), "")
    with opened(url) as file:
        if not compression:
            file.seek(offset)
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
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


def content(url: str, offset: int = 0, form: Form | None = None) -> Iterator[bytes]:
    """The file as UTF-8 from byte `offset` of that on, with "\\n" for line ends that are "\\r" alone.

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
                yield (chunk[offset:] if offset else chunk).replace(b"\r", b"\n") if form.cr else chunk[offset:]
            offset = max(0, offset - len(chunk))


def _converted(source: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in source:
        yield decoder.decode(chunk).encode("utf-8", errors)
    yield decoder.decode(b"", final=True).encode("utf-8", errors)


def lines(url: str, offset: int = 0, form: Form | None = None) -> Iterator[tuple[bytes | int, int]]:
    """Lines from byte `offset` of the decompressed file, without "\\n", each with the offset that follows it.

    A line of MAX_LINE_BYTES or more is not kept: its length stands in its place.
    """
    rest, dropped = b"", 0
    for chunk in content(url, offset, form):
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


def json_records(url: str, offsets: Sequence[int], form: Form | None = None) -> Iterator[dict[str, Any]]:
    """Raw lines of a JSON Lines file; blank ones are no rows."""
    for line, at in lines(url, offsets[0] if offsets else 0, form):
        if isinstance(line, int) or line.strip():
            yield {"raw": line, "at": (at,)}


def parse_json(raw: bytes | int) -> Parsed:
    """One line of JSON Lines."""
    if isinstance(raw, int):
        return {}, too_long(raw)
    if b"\0" in raw:
        return {}, "NUL byte"
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"invalid UTF-8: at byte {error.start} of the line{OTHER_ENCODING}"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if not isinstance(values, dict):
        return {}, f"not a JSON object: {type(values).__name__}, where one object per line is read"
    return values, None


def text_records(urls: Sequence[str], offsets: Sequence[int], forms: Sequence[Form]) -> Iterator[dict[str, Any]]:
    """Raw lines of parallel text files, one from each; None where a file has ended before the others."""
    at = list(offsets) or [0] * len(urls)
    for row in zip_longest(*(lines(*file) for file in zip(urls, at, forms, strict=True))):
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
            return {}, f"{too_long(line)}, {role!r}"
        try:
            values[role] = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            return {}, f"invalid UTF-8: at byte {error.start} of the line, {role!r}{OTHER_ENCODING}"
    return values, None


def encodable(text: str) -> bool:
    """Whether UTF-8 can represent a text: a lone surrogate cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def too_long(size: int) -> str:
    return f"too long: {size} bytes, where {MAX_LINE_BYTES} or more are no row"


@contextmanager
def scratch_cache() -> Iterator[str]:
    """A folder for the lock files that `datasets` writes when it opens a stream, removed as soon as that is open.

    Its own cache is below the home directory, which may not be writable, and keeps a lock file for each stream.
    """
    with tempfile.TemporaryDirectory(prefix="rankzero-datasets-") as folder:
        yield folder


def doubled_quotes(text: str) -> str:
    """Write \\" as "" and a doubled backslash as a single one; other backslashes stay."""
    return _ESCAPED.sub(lambda found: '""' if found[1] == '"' else "\\", text)
