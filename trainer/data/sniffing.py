"""Forms of files, from their first bytes: refuse what only looks like data; find encoding, line ends, delimiter."""

from __future__ import annotations

import codecs
import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trainer.data import formats
from trainer.data.file_types import GZIP, HEAD_BYTES, ZSTD, check_content
from trainer.data.formats import BadFile
from trainer.data.paths import matching
from trainer.recipe.sections import DataConfig

log = logging.getLogger("rankzero")
LOOKED_AT = 50  # records of a head that a delimiter must fit
DELIMITERS = (",", ";", "\t", "|")
_logged: set[str] = set()

_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"))
MARKS = (*_MARKS, (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Reading:
    """How files are read: the keys of `data` that say so, and the columns that the task uses (None: all)."""

    delimiter: str | None = None
    encoding: str | None = None
    quote: str | None = None
    header: bool = True
    wanted: tuple[str, ...] | None = None

    @classmethod
    def of(cls, data: DataConfig, roles: Sequence[str] | None) -> Reading:
        """From a recipe; `roles` are those of the task."""
        wanted = None if roles is None else tuple(data.columns.get(role, role) for role in roles)
        return cls(data.delimiter, data.encoding, data.quote, data.header, wanted)


@dataclass(frozen=True)
class Form:
    """The form of one file.

    Attributes:
        compression: ".gz", ".zst" or "".
        encoding: a codec; all but utf-8 is converted while it is read.
        cr: lines end at "\\r".
        array: a JSON array, not one object per line.
        separator_line: a CSV file begins with Excel's line `sep=;`.
        delimiter: of a CSV file.
        quote: of a CSV file: a character, "none" or "backslash".
    """

    compression: str = ""
    encoding: str = "utf-8"
    cr: bool = False
    array: bool = False
    separator_line: bool = False
    delimiter: str = ","
    quote: str = '"'


def sniff(url: str, name: str, kind: str, reading: Reading) -> Form:
    """Find the form of a file.

    Args:
        url: of the file.
        name: for the log.
        kind: the format that its name promises, see `Shard.format`.
        reading: the form that the recipe sets; it is not guessed then.

    Raises:
        BadFile: the file is something else than its name promises.
    """
    with formats.opened(url) as file:
        head = file.read(HEAD_BYTES)
    if not head and kind not in ("parquet", "arrow", "prepared"):  # an empty part of a job that wrote many
        _note(name, "no rows, because it is empty")
        return Form()
    if kind in ("parquet", "arrow", "prepared"):
        _check_table(head, "arrow" if kind == "arrow" else "parquet")
        return Form()
    compression = _compression(head, name)
    if compression:
        head = next(formats.chunks(url, 0, compression), b"")[:HEAD_BYTES]
        if not head:
            _note(name, "no rows, because it is empty once decompressed")
            return Form(compression)
    check_content(head, kind, reading.wanted)
    encoding = _encoding(head, reading)
    text = _decoded(head, encoding)
    if encoding != "utf-8" and reading.encoding is None:
        _note(name, f"encoding {encoding}, by its byte order mark")
    cr = "\r" in text.rstrip("\r") and "\n" not in text
    if cr:
        text = text.replace("\r", "\n")
        _note(name, "lines that end in CR only")
    if kind == "jsonl":
        array = _is_array(text)
        return Form(compression, encoding, cr and not array, array)
    if kind == "text":
        return Form(compression, encoding, cr)
    return _csv_form(text, len(head) < HEAD_BYTES, name, kind, reading, Form(compression, encoding, cr))


def _note(name: str, what: str) -> None:
    if what not in _logged:
        _logged.add(what)
        log.info("%s is read with %s", name, what)


def _compression(head: bytes, name: str) -> str:
    found = ".gz" if head.startswith(GZIP) else ".zst" if head.startswith(ZSTD) else ""
    promised = next((ending for ending in formats.COMPRESSIONS if name.endswith(ending)), "")
    if found != promised and promised:
        check_content(head, "text")
        raise BadFile(f"its name ends in {promised}, but its content is not compressed so: rename or fetch it again")
    if found != promised:
        _note(name, f"{found} compression, which its name does not say")
    return found


def _check_table(head: bytes, kind: str) -> None:
    if head.startswith(b"PAR1" if kind == "parquet" else (b"ARROW1", b"\xff\xff\xff\xff")):
        return
    check_content(head, kind)
    raise BadFile(f"it is no {kind.capitalize()} file: its first bytes are {head[:8]!r}. Fetch or write it again")


def _encoding(head: bytes, reading: Reading) -> str:
    if reading.encoding is not None:
        return codecs.lookup(reading.encoding).name
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    zeros = head[:4096].count(0) / len(head[:4096]) if head else 0
    if zeros > 0.2:
        even, odd = head[0:4096:2].count(0), head[1:4096:2].count(0)
        if max(even, odd) > 4 * min(even, odd):
            encoding = "utf-16-le" if odd > even else "utf-16-be"
            raise BadFile(f"it looks like UTF-16 without a byte order mark: set data.encoding={encoding}")
        raise BadFile(f"it is binary: {zeros:.0%} of its first bytes are zero. Remove it from the pattern")
    return "utf-8"


def _decoded(head: bytes, encoding: str) -> str:
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)
    return text.removeprefix("\ufeff")


def _is_array(text: str) -> bool:
    """Whether the text begins a JSON array; refuses an object over several lines."""
    text = text.lstrip()
    if text.startswith("["):
        return not text[1:].lstrip().startswith("[") and bool(re.match(r"\[\s*(\{|\]|$)", text))
    first = text.split("\n", 1)[0].strip()
    if first == "{":
        raise BadFile(
            "its first object is written over several lines, and one object per line is needed. Convert it with "
            "`jq -c . FILE > rows.jsonl`, or with `jq -c '.KEY[]' FILE > rows.jsonl` where the rows are below a key"
        )
    return False


def _csv_form(text: str, complete: bool, name: str, kind: str, reading: Reading, form: Form) -> Form:
    default, separator = "\t" if kind == "tsv" else ",", False
    if found := re.match(r'"?sep=(.)"?[\r\n]', text):
        default, separator = found[1], True
        text = text.split("\n", 1)[1]
        _note(name, f"delimiter {default!r}, by its line sep=")
    text = text if complete else text[: text.rfind("\n") + 1]
    if reading.delimiter is not None:
        default = reading.delimiter
    elif not separator:
        default = _delimiter(text, default, name, reading)
    quote = reading.quote or _quote(text, complete, default, name)
    return Form(form.compression, form.encoding, form.cr, False, separator, default, quote)


def _records(text: str, delimiter: str, **more: Any) -> list[list[str]]:
    lines = (line + "\n" for line in text.split("\n"))
    return [fields for fields in islice(csv.reader(lines, delimiter=delimiter, **more), LOOKED_AT) if fields]


def _delimiter(text: str, default: str, name: str, reading: Reading) -> str:
    """The default, unless it splits no header and another one does, evenly."""
    if _fits(text, default, reading) and (reading.wanted or len(_header(text, default)) > 1):
        return default
    fitting = [d for d in DELIMITERS if d != default and len(_header(text, d)) > 1 and _is_even(text, d)]
    if reading.wanted and reading.header:
        fitting = [d for d in fitting if _fits(text, d, reading)] or (
            [] if len(_header(text, default)) > 1 else fitting
        )
    elif len(_header(text, default)) > 1:
        return default
    if len(fitting) != 1:
        return default
    _note(name, f"delimiter {fitting[0]!r}, by its first lines (data.delimiter sets another)")
    return fitting[0]


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next(iter(_records(text.split("\n", 1)[0], delimiter)), [])
    except csv.Error:
        return []


def _fits(text: str, delimiter: str, reading: Reading) -> bool:
    header = _header(text, delimiter)
    return all(matching(header, column) is not None for column in reading.wanted or ())


def _is_even(text: str, delimiter: str) -> bool:
    """Whether 9 of 10 records have as many fields as the header."""
    try:
        records = _records(text, delimiter)
    except csv.Error:
        return False
    return sum(len(fields) == len(records[0]) for fields in records) >= 0.9 * len(records)


def _quote(text: str, complete: bool, delimiter: str, name: str) -> str:
    """`backslash` where marks within values are written \\" and the usual reading fails on them."""
    if '\\"' in text and not _reads(text, complete, delimiter):
        if not _reads(formats.doubled_quotes(text), complete, delimiter):
            return '"'
        _note(name, 'quotation marks escaped as \\" (data.quote sets another form)')
        return "backslash"
    return '"'


def _reads(text: str, complete: bool, delimiter: str) -> bool:
    """Whether the records have as many fields as the header; the last one may be cut off."""
    lines = [line + "\n" for line in text.split("\n")]
    reader, records = csv.reader(lines, delimiter=delimiter, strict=True), list[list[str]]()
    try:
        records.extend(fields for fields in islice(reader, LOOKED_AT) if fields)
    except csv.Error:
        if complete or reader.line_num < len(lines):
            return False
    return bool(records) and all(len(fields) == len(records[0]) for fields in records)
