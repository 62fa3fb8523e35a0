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
# The first bytes of files that people take for rows, what they are, and the fix. Others are binary or not UTF-8.
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(begin, re.DOTALL), what, fix)
    for begin, what, fix in (
        (b"|".join(map(re.escape, LFS_POINTERS)), "a Git LFS pointer", "run `git lfs pull` to fetch the content"),
        (rb"(\.\./\.git)?/annex/objects/", "a git-annex pointer", "run `git annex get` to fetch the content"),
        (rb"%PDF-", "a PDF document", "extract its text into a text file"),
        (rb"\xfd7zXZ\0", "an xz archive", _UNPACK),
        (rb"BZh[1-9]1AY&SY", "a bzip2 archive", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|.{257}ustar", "a 7-Zip, RAR or tar archive", _UNPACK),
        (re.escape(GZIP), "compressed with gzip", "decompress it"),
        (re.escape(ZSTD), "compressed with zstd", "decompress it"),
        (rb"PK\x03\x04.*(xl/|word/|\[Content_Types\]|opendocument)", "an Office document (.xlsx or like it)", _EXPORT),
        (rb"PK\x03\x04", "a zip archive", _UNPACK),
        (rb"\xd0\xcf\x11\xe0", "an old Office document (.xls or .doc)", _EXPORT),
        (rb"PAR1", "a Parquet file", "give it a name that ends in .parquet"),
        (rb"ARROW1", "an Arrow file", "give it a name that ends in .arrow"),
        (rb"\xff\xff\xff\xff", "an Arrow stream", "give it a name that ends in .arrow"),
        (rb"SQLite format 3\0", "an SQLite database", _EXPORT),
        (rb"\x80[\x02-\x05]", "a Python pickle", _EXPORT),
    )
)
_ERROR_KEYS = frozenset(("error", "errors", "message", "detail", "status", "code", "statusCode"))
_FORMAT_NAMES = {"jsonl": "JSON Lines", "csv": "CSV", "tsv": "TSV", "text": "text", "conll": "CoNLL"}


def compression_of(head: bytes) -> str:
    """Return the extension of the compression that the first bytes of a file show, such as ".gz"; "" for none."""
    return ".gz" if head.startswith(GZIP) else ".zst" if head.startswith(ZSTD) else ""


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
    what, fix = next(((what, fix) for magic, what, fix in _KINDS if magic.match(begin)), ("", ""))
    if page := page_in(begin):
        what, fix = page, "often the error page of a failed download. Fetch it again"
    elif not what and len(head) < HEAD_BYTES and _is_server_error(begin, kind, wanted):
        text = begin[:80].decode("utf-8", "replace").strip()
        what, fix = "the error message of a server", f"{text}. Fetch the file again"
    if what:
        raise BadFile(f"it is {what}, not {_FORMAT_NAMES.get(kind, f'a {kind} file')}: {fix}")


def _is_server_error(begin: bytes, kind: str, wanted: Sequence[str] | None) -> bool:
    try:
        answer = json.loads(begin) if begin.lstrip()[:1] == b"{" else None
    except (ValueError, RecursionError):
        return False
    if not isinstance(answer, dict) or not _ERROR_KEYS & answer.keys():
        return False
    return kind != "jsonl" or all(value_at(answer, column) is MISSING for column in wanted or ("text",))
