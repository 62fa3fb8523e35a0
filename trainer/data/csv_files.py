"""Records of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data import formats
from trainer.data.formats import OTHER_ENCODING, BadFile, doubled_quotes, encodable, lines, too_long
from trainer.data.paths import matching
from trainer.data.sniffing import Form, Reading

_QUOTED = "; a value that begins with a quotation mark must end with one, and double those within"


class _TooLong(Exception):
    """A CSV record that passes MAX_LINE_BYTES; the text says its length."""


class _Feed:
    """The decoded lines of one CSV file, as `csv.reader` asks for them; `at`: where the last one ended."""

    def __init__(self, url: str, form: Form, offset: int = 0):
        self._lines, self.at = lines(url, offset, form), offset
        self._backslash = form.quote == "backslash"
        self._mark = {"none": "", "backslash": '"'}.get(form.quote, form.quote)
        self.begin()

    def begin(self) -> None:
        """Begin a record: nothing of it is read yet."""
        self._size, self.count, self._marks, self.decodable = 0, 0, 0, True

    def skip(self) -> None:
        """Skip a line."""
        _, self.at = next(self._lines, (b"", self.at))

    def __iter__(self) -> _Feed:
        return self

    def skip_value(self) -> bool:
        """Go to the end of a record that is too long. Return False, at the end of the file, if a value has no end."""
        try:
            while self._marks % 2:  # lines of a quoted value are no records
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


def csv_records(url: str, offsets: Sequence[int], form: Form, reading: Reading) -> Iterator[dict[str, Any]]:
    """Parsed records of a CSV file; a quoted field may hold newlines; blank lines are no rows.

    A field that begins with a quotation mark must end with the next one that is not doubled. Read leniently it would
    lose its marks, and take lines into itself that are records. A record that cannot be read has a third element: the
    lines that it takes.
    """
    csv.field_size_limit(max(csv.field_size_limit(), formats.MAX_LINE_BYTES))  # of the process; ours ends earlier
    feed = _Feed(url, form)
    if form.separator_line:
        feed.skip()
    header = _header(feed, form, reading) if reading.header else None
    if offsets and offsets[0] > feed.at:
        feed = _Feed(url, form, offsets[0])
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
            else:  # a stray mark rather than a value: records follow
                feed = _Feed(url, form, at)
                reader = _reader(feed, form)
            yield {"raw": ({}, f"{_lines(count)} no record: {error}{_QUOTED}", count), "at": (at,)}
            continue
        except csv.Error as error:
            yield {"raw": ({}, f"{_lines(feed.count)} no record: {error}{_QUOTED}", feed.count), "at": (feed.at,)}
            continue
        if fields:
            names = [str(number) for number in range(len(fields))] if header is None else header
            yield {"raw": _record(names, fields, feed, form, reading), "at": (feed.at,)}


def _reader(feed: _Feed, form: Form) -> Any:
    if form.quote == "none":
        return csv.reader(feed, delimiter=form.delimiter, quoting=csv.QUOTE_NONE)
    mark = '"' if form.quote == "backslash" else form.quote
    return csv.reader(feed, delimiter=form.delimiter, quotechar=mark, strict=True)


def _header(feed: _Feed, form: Form, reading: Reading) -> list[str]:
    try:
        names: list[str] = next(_reader(feed, form), [])
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


def _record(names: list[str], fields: list[str], feed: _Feed, form: Form, reading: Reading) -> Any:
    """The named values of a record; columns without a name, and a missing last field of one, are nothing."""
    for name, field in zip(names, fields, strict=False):
        if form.delimiter == "\t" and "\t" in field and "\n" in field:  # in a text by intent neither is probable
            return {}, f"{_lines(feed.count)} one value, with tabs, of column {name!r}{_QUOTED}", feed.count
    if len(fields) != len(names):
        return {}, f"wrong number of fields: {len(fields)}, where the header has {len(names)}", feed.count
    values = {name: field for name, field in zip(names, fields, strict=True) if name}
    if not feed.decodable:
        used = [matching(values, column) for column in reading.wanted] if reading.wanted is not None else list(values)
        if None in used:
            used = list(values)
        bad = [name for name in used if name is not None and not encodable(values[name])]
        if bad:
            return {}, f"invalid UTF-8 in column {bad[0]!r}: {OTHER_ENCODING.removeprefix('; ')}", feed.count
    return values, None
