"""Recognize files that have no rows by their first bytes: archives, pointers, web pages and documents."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence

from trainer.data.formats import BadFile
from trainer.data.paths import MISSING, value_at
from trainer.hub_paths import LFS_POINTERS, page_in

HEAD_BYTES = 1 << 16  # bytes of a file that are read to determine its form
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UNPACK = "unpack it, or compress it with gzip or zstd"
_EXPORT = "export it as CSV or Parquet"
# First bytes -> what the file is, and the fix.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    *((pointer, "a Git LFS pointer", "run `git lfs pull` to fetch the content") for pointer in LFS_POINTERS),
    (b"/annex/objects/", "a git-annex pointer", "run `git annex get` to fetch the content"),
    (b"../.git/annex/objects/", "a git-annex pointer", "run `git annex get` to fetch the content"),
    (b"%PDF-", "a PDF document", "extract its text into a text file"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (GZIP, "compressed with gzip", "decompress it"),
    (ZSTD, "compressed with zstd", "decompress it"),
    (b"\x04\x22\x4d\x18", "an lz4 archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"PAR1", "a Parquet file", "give it a name that ends in .parquet"),
    (b"ARROW1", "an Arrow file", "give it a name that ends in .arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "give it a name that ends in .arrow"),
    (b"FEA1", "a Feather file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.xls or .doc)", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a NumPy file", _EXPORT),
    *((bytes((0x80, version)), "a Python pickle", _EXPORT) for version in range(2, 6)),
    (b"\x89PNG", "a picture", "remove it from the pattern"),
    (b"\xff\xd8\xff", "a picture", "remove it from the pattern"),
    (b"\x7fELF", "a program", "remove it from the pattern"),
)
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"BZh[1-9]1AY&SY"), "a bzip2 archive", _UNPACK),
    (re.compile(rb"ORC[\x00-\x08\x0e-\x1f\x80-\xff]"), "an ORC file", _EXPORT),
    *((re.compile(re.escape(magic)), what, fix) for magic, what, fix in _MAGIC),
)
_ERROR_KEYS = frozenset(("error", "errors", "message", "detail", "status", "code", "statusCode"))
_FORMAT_NAMES = {"jsonl": "JSON Lines", "csv": "CSV", "tsv": "TSV", "text": "text", "conll": "CoNLL"}


def check_content(head: bytes, kind: str, wanted: Sequence[str] | None = None) -> None:
    """Refuse a file whose first bytes show that it has no rows.

    Args:
        head: the first bytes, decompressed.
        kind: the format that the name says.
        wanted: columns that the task uses; a JSON object with one of them is not an error message.

    Raises:
        BadFile: says what the file is, and the fix.
    """
    begin = head.removeprefix(codecs.BOM_UTF8)
    if problem := _problem(begin) or (_server_error(begin, kind, wanted) if len(head) < HEAD_BYTES else None):
        what, fix = problem
        raise BadFile(f"it is {what}, not {_FORMAT_NAMES.get(kind, f'a {kind} file')}: {fix}")


def _problem(begin: bytes) -> tuple[str, str] | None:
    """Return what the file is, and the fix."""
    for magic, what, fix in _KINDS:
        if magic.match(begin):
            return what, fix
    if begin.startswith(b"PK\x03\x04"):
        office = any(name in begin for name in (b"xl/", b"word/", b"[Content_Types]", b"opendocument"))
        return ("an Office document (.xlsx or like it)", _EXPORT) if office else ("a zip archive", _UNPACK)
    if begin[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if page := page_in(begin):
        return page, "often the error page of a failed download. Fetch it again"
    return None


def _server_error(begin: bytes, kind: str, wanted: Sequence[str] | None) -> tuple[str, str] | None:
    if begin.lstrip()[:1] != b"{":
        return None
    try:
        answer = json.loads(begin)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not _ERROR_KEYS & answer.keys():
        return None
    if kind == "jsonl" and any(value_at(answer, column) is not MISSING for column in wanted or ("text",)):
        return None
    return "the error message of a server", f"{begin[:80].decode('utf-8', 'replace').strip()}. Fetch the file again"
