"""The form of a file from its first bytes: compression, encoding, line ends, delimiter, quotation marks."""

from __future__ import annotations

import codecs
import csv
import logging
import re
from dataclasses import dataclass, replace
from itertools import islice

from trainer.data import formats
from trainer.data.file_types import HEAD_BYTES, check_content, compression_of
from trainer.data.formats import BadFile
from trainer.data.paths import matching
from trainer.data.roles import Roles
from trainer.recipe.sections import DataConfig

log = logging.getLogger("rankzero")
HEAD_RECORDS = 50  # records of a head that a delimiter must fit
DELIMITERS = (",", ";", "\t", "|")
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_ESCAPED = re.compile(r'\\(["\\])')
_logged: set[str] = set()


@dataclass(frozen=True)
class Reading:
    """How files are read: keys of `data`, and the columns that the task uses.

    Attributes:
        wanted: columns that are used; None for all.
        lists: those of `wanted` whose values may be lists.
    """

    delimiter: str | None = None
    encoding: str | None = None
    quote: str | None = None
    header: bool = True
    wanted: tuple[str, ...] | None = None
    lists: frozenset[str] = frozenset()

    @classmethod
    def of(cls, data: DataConfig, roles: Roles | None) -> Reading:
        """Return what the `data` section and the roles of a task set."""
        columns = {name: data.columns.get(name, name) for name in roles or ()}
        wanted = None if roles is None else tuple(columns.values())
        lists = frozenset(columns[name] for name, role in (roles or {}).items() if role.is_list)
        return cls(data.delimiter, data.encoding, data.quote, data.header, wanted, lists)


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
    """Determine the form of a file.

    Args:
        url: of the file.
        name: for the log.
        kind: the format that its name says, see `Shard.format`.
        reading: what the recipe sets is not guessed.

    Raises:
        BadFile: the file is something else than its name says.
    """
    with formats.opened(url) as file:
        head = file.read(HEAD_BYTES)
    if kind in ("parquet", "arrow", "prepared"):
        _check_table(head, "arrow" if kind == "arrow" else "parquet")
        return Form()
    if not head:  # an empty part of a job that wrote many
        _note(name, "no rows, because it is empty")
        return Form()
    compression = _compression(head, name)
    if compression:
        head = next(formats.chunks(url, 0, compression), b"")[:HEAD_BYTES]
        if not head:
            _note(name, "no rows, because it is empty once decompressed")
            return Form(compression)
    check_content(head, kind, reading.wanted)
    encoding = _encoding(head, reading)
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head).removeprefix("\ufeff")
    if encoding != "utf-8" and reading.encoding is None:
        _note(name, f"encoding {encoding}, by its byte order mark")
    cr = "\r" in text.rstrip("\r") and "\n" not in text
    if cr:
        text = text.replace("\r", "\n")
        _note(name, "lines that end in CR only")
    form = Form(compression, encoding, cr)
    if kind == "jsonl":
        return replace(form, cr=False, array=True) if _is_array(text) else form
    return form if kind in ("text", "conll") else _csv_form(text, len(head) < HEAD_BYTES, name, kind, reading, form)


def _note(name: str, what: str) -> None:
    if what not in _logged:
        _logged.add(what)
        log.info("%s is read with %s", name, what)


def _compression(head: bytes, name: str) -> str:
    content = compression_of(head)
    ending = next((ending for ending in formats.COMPRESSIONS if name.endswith(ending)), "")
    if content != ending and ending:
        check_content(head, "text")
        raise BadFile(f"its name ends in {ending}, but its content is not compressed so: rename or fetch it again")
    if content != ending:
        _note(name, f"{content} compression, which its name does not say")
    return content


def _check_table(head: bytes, kind: str) -> None:
    if not head.startswith(b"PAR1" if kind == "parquet" else (b"ARROW1", b"\xff\xff\xff\xff")):
        check_content(head, kind)
        raise BadFile(
            f"it is not a {kind.capitalize()} file: its first bytes are {head[:8]!r}. Fetch or write it again"
        )


def _encoding(head: bytes, reading: Reading) -> str:
    if reading.encoding is not None:
        return codecs.lookup(reading.encoding).name
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    begin = head[:4096]
    even, odd = begin[::2].count(0), begin[1::2].count(0)
    if even + odd > 0.2 * len(begin) and max(even, odd) > 4 * min(even, odd):
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        raise BadFile(f"it looks like UTF-16 without a byte order mark: set data.encoding={encoding}")
    control = len(_CONTROL.findall(begin)) / len(begin)
    if control > (0.05 if len(begin) > 256 else 0.2):  # compressed content has 10% of them
        raise BadFile(f"it is binary: {control:.0%} of its first bytes are control codes. Remove it from the pattern")
    return "utf-8"


def _is_array(text: str) -> bool:
    """Return whether the text begins a JSON array.

    Raises:
        BadFile: it begins an object of several lines.
    """
    text = text.lstrip()
    if text.startswith("["):
        return not text[1:].lstrip().startswith("[") and bool(re.match(r"\[\s*(\{|\]|$)", text))
    if text.split("\n", 1)[0].strip() == "{":
        raise BadFile(
            "its first object is written over several lines, and one object per line is needed. Convert it with "
            "`jq -c . FILE > rows.jsonl`, or with `jq -c '.KEY[]' FILE > rows.jsonl` if the rows are below a key"
        )
    return False


def _csv_form(text: str, complete: bool, name: str, kind: str, reading: Reading, form: Form) -> Form:
    delimiter = "\t" if kind == "tsv" else ","
    separator = re.match(r'"?sep=(.)"?[\r\n]', text)
    if separator:
        delimiter = separator[1]
        text = text.split("\n", 1)[1]
        _note(name, f"delimiter {delimiter!r}, by its line sep=")
    if not complete:
        text = text[: text.rfind("\n") + 1]
    if reading.delimiter is not None:
        delimiter = reading.delimiter
    elif not separator:
        delimiter = _delimiter(text, delimiter, name, reading)
    quote = reading.quote or _quote(text, complete, delimiter, name)
    return replace(form, separator_line=separator is not None, delimiter=delimiter, quote=quote)


def _delimiter(text: str, default: str, name: str, reading: Reading) -> str:
    """Return the default, unless it does not split the header and exactly one other delimiter does, evenly."""
    wanted = reading.wanted or ()
    records = {delimiter: _records(text, delimiter) or [[]] for delimiter in (default, *DELIMITERS)}
    named = [d for d, lines in records.items() if all(matching(lines[0], column) is not None for column in wanted)]
    splits = len(records[default][0]) > 1
    if default in named and (wanted or splits):
        return default
    fitting = [d for d, lines in records.items() if d != default and len(lines[0]) > 1 and _is_even(lines)]
    if wanted and reading.header:
        fitting = [d for d in fitting if d in named] or ([] if splits else fitting)
    elif splits:
        return default
    if len(fitting) != 1:
        return default
    _note(name, f"delimiter {fitting[0]!r}, by its first lines (data.delimiter sets another)")
    return fitting[0]


def _is_even(records: list[list[str]]) -> bool:
    """Return whether 9 of 10 records have as many fields as the header."""
    return sum(len(fields) == len(records[0]) for fields in records) >= 0.9 * len(records)


def _quote(text: str, complete: bool, delimiter: str, name: str) -> str:
    """Return `backslash` if marks within values are written \\" and the usual reading fails on them."""
    if '\\"' not in text or _is_regular(text, complete, delimiter):
        return '"'
    if not _is_regular(doubled_quotes(text), complete, delimiter):
        return '"'
    _note(name, 'quotation marks escaped as \\" (data.quote sets another form)')
    return "backslash"


def _is_regular(text: str, complete: bool, delimiter: str) -> bool:
    """Return whether all records are valid and have as many fields as the header. The last one may be cut off."""
    records = _records(text, delimiter, strict=True, complete=complete) or []
    return bool(records) and all(len(fields) == len(records[0]) for fields in records)


def _records(text: str, delimiter: str, strict: bool = False, complete: bool = True) -> list[list[str]] | None:
    """Return the first records. None if they are not valid, except for the last one of a text that is not complete."""
    lines = [line + "\n" for line in text.split("\n")]
    reader, records = csv.reader(lines, delimiter=delimiter, strict=strict), list[list[str]]()
    try:
        records.extend(fields for fields in islice(reader, HEAD_RECORDS) if fields)
    except csv.Error:
        if complete or reader.line_num < len(lines):
            return None
    return records


def doubled_quotes(text: str) -> str:
    """Write \\" as "" and a doubled backslash as a single one. Other backslashes stay."""
    return _ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", text)
