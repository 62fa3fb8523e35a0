"""Records of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from trainer.data import formats
from trainer.data.formats import OTHER_ENCODING, BadFile, Parsed, too_long
from trainer.data.paths import matching
from trainer.data.roles import encodable
from trainer.data.sniffing import Form, Reading, doubled_quotes

_QUOTED = (
    "; a value that begins with a quotation mark must end with one, and double those within. If marks are no quotation "
    "in this file, set data.quote=none"
)


class _TooLong(Exception):
    """A CSV record of more than MAX_LINE_BYTES. The text says its length."""


class _Feed:
    """The decoded lines of one CSV file for `csv.reader`.

    Attributes:
        at: byte offset after the last line.
        count: lines of the current record.
        decodable: whether these lines are valid UTF-8.
    """

    def __init__(self, url: str, form: Form, offset: int = 0):
        self._lines, self.at = formats.lines(url, offset, form), offset
        self._backslash = form.quote == "backslash"
        self._mark = {"none": "", "backslash": '"'}.get(form.quote, form.quote)
        self.begin()

    def begin(self) -> None:
        """Begin a record."""
        self._size, self.count, self._marks, self.decodable = 0, 0, 0, True

    def skip(self) -> None:
        """Skip a line."""
        _, self.at = next(self._lines, (b"", self.at))

    def __iter__(self) -> _Feed:
        return self

    def skip_value(self) -> bool:
        """Go to the end of a record that is too long. Return False, at the end of the file, if a value has no end."""
        try:
            while self._marks % 2:  # lines of a quoted value are not records
                self._take()
        except StopIteration:
            return False
        return True

    def _take(self) -> bytes | int:
        line, self.at = next(self._lines)
        self.count += 1
        self._size += line if isinstance(line, int) else len(line) + 1
        if self._mark and not isinstance(line, int):
            escaped = line.count(b"\\" + self._mark.encode()) if self._backslash else 0
            self._marks += line.count(self._mark.encode()) - escaped
        return line

    def __next__(self) -> str:
        line = self._take()
        if isinstance(line, int) or self._size > formats.MAX_LINE_BYTES:
            raise _TooLong(too_long(self._size))
        try:
            text = line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            self.decodable = False
            text = line.decode("utf-8", "surrogateescape") + "\n"
        return doubled_quotes(text) if self._backslash else text


def csv_records(url: str, offset: int, form: Form, reading: Reading) -> Iterator[tuple[Parsed, tuple[int, ...]]]:
    """Yield the records of a CSV file from a byte offset. A quoted field may hold newlines. Blank lines are not rows.

    A field that begins with a quotation mark must end with the next one that is not doubled. A lenient reader would
    drop such marks, and add lines to the field that are records.
    """
    csv.field_size_limit(max(csv.field_size_limit(), formats.MAX_LINE_BYTES))  # of the process; ours is reached first
    feed = _Feed(url, form)
    if form.separator_line:
        feed.skip()
    header = _header(feed, form, reading) if reading.header else None
    if offset > feed.at:
        feed = _Feed(url, form, offset)
    reader = _reader(feed, form)
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _TooLong as error:
            at, count = feed.at, feed.count
            if feed.skip_value():
                at, count = feed.at, feed.count
            else:  # a stray mark that begins no value: records follow
                feed = _Feed(url, form, at)
                reader = _reader(feed, form)
            yield Parsed({}, f"{_lines(count)} not a record: {error}{_QUOTED}", count), (at,)
            continue
        except csv.Error as error:
            yield Parsed({}, f"{_lines(feed.count)} not a record: {error}{_QUOTED}", feed.count), (feed.at,)
            continue
        if fields:
            names = [str(number) for number in range(len(fields))] if header is None else header
            problem = _problem(names, fields, feed, form, reading)
            values: dict[str, object] = {name: field for name, field in zip(names, fields, strict=False) if name}
            yield Parsed({} if problem else values, problem, feed.count if problem else 1), (feed.at,)


def _reader(feed: _Feed, form: Form) -> Any:
    if form.quote == "none":
        return csv.reader(feed, delimiter=form.delimiter, quoting=csv.QUOTE_NONE)
    mark = '"' if form.quote == "backslash" else form.quote
    return csv.reader(feed, delimiter=form.delimiter, quotechar=mark, strict=True)


def _header(feed: _Feed, form: Form, reading: Reading) -> list[str]:
    try:
        names: list[str] = next(filter(None, _reader(feed, form)), [])  # after blank lines
    except (csv.Error, _TooLong) as error:
        raise BadFile(f"the header cannot be read: {error}") from None
    if not feed.decodable:
        raise BadFile(f"the header is not UTF-8{OTHER_ENCODING}")
    header = [name.strip() for name in names]
    used = header if reading.wanted is None else [matching(header, column) for column in reading.wanted]
    for name in used:
        if name and header.count(name) > 1:
            raise BadFile(f"a column is listed twice in the header {header}: {name!r}. Rename one of them")
    return header


def _lines(count: int) -> str:
    return "a line is" if count == 1 else f"{count} lines are"


def _problem(names: list[str], fields: list[str], feed: _Feed, form: Form, reading: Reading) -> str | None:
    """Return what is wrong with a record."""
    for name, field in zip(names, fields, strict=False):
        if form.delimiter == "\t" and "\t" in field and "\n" in field:  # both in one value are not intended
            return f"{_lines(feed.count)} one value, with tabs, of column {name!r}{_QUOTED}"
    if len(fields) != len(names):
        return f"wrong number of fields: {len(fields)}, where the header has {len(names)}"
    if feed.decodable:
        return None
    values = {name: field for name, field in zip(names, fields, strict=True) if name}
    used = {matching(values, column) for column in reading.wanted or ()}
    if reading.wanted is None or None in used:
        used = {*values}
    bad = [name for name in values if name in used and not encodable(values[name])]
    return f"invalid UTF-8 in column {bad[0]!r}: {OTHER_ENCODING.removeprefix('; ')}" if bad else None
