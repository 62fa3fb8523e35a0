"""Other readers of the same formats: the standard library and pyarrow, which read a file at once."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from benchmarks.fuzz.guard import Broken
from trainer.data.formats import MAX_LINE_BYTES
from trainer.data.sniffing import Form
from trainer.data.sources import Row

BOM = b"\xef\xbb\xbf"


def json_lines(content: bytes, cr: bool) -> list[dict[str, Any] | None]:
    """Return the object of each line that is not blank, or None for a line that is no object."""
    content = content.replace(b"\r", b"\n") if cr else content
    lines = [line for line in _lines(content) if line.strip()]
    rows = [_object(line) for line in lines]
    if (schema := _schema(rows)) is not None and not any(map(_repeats, lines)):
        options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        read = pa_json.read_json(io.BytesIO(b"\n".join(lines)), parse_options=options).to_pylist()
        if repr(read) != repr(rows):
            raise Broken(f"pyarrow reads {read!r:.300}, and the standard library {rows!r:.300}")
    return rows


TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _schema(rows: Sequence[dict[str, Any] | None]) -> Any:
    """Return the types of the columns if pyarrow has them, and all rows have the same columns. Else None."""
    if not rows or rows[0] is None or not rows[0]:
        return None
    names, fields = list(rows[0]), []
    if any(row is None or list(row) != names for row in rows) or not all(map(_plain, names)):
        return None
    for name in names:
        values = [row[name] for row in rows if row is not None and row[name] is not None]
        kinds = set(map(type, values))
        if len(kinds) != 1 or not kinds < TYPES.keys() or not all(map(_plain, values)):
            return None
        fields.append((name, TYPES[kinds.pop()]))
    return pa.schema(fields)


def _plain(value: str | int | float | bool) -> bool:
    """Return whether pyarrow has a value: no half of a surrogate pair, no number out of range."""
    if isinstance(value, str):
        return "\0" not in value and value.encode("utf-8", "replace") == value.encode("utf-8", "surrogatepass")
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**62


def _repeats(line: bytes) -> bool:
    """Return whether an object has a key twice, of which pyarrow takes another one."""
    pairs = json.loads(line.decode("utf-8"), object_pairs_hook=lambda found: found)
    return len(dict(pairs)) != len(pairs)


def _lines(content: bytes) -> list[bytes]:
    """Return the lines, without a byte order mark and without an empty last one."""
    found = content.removeprefix(BOM).split(b"\n")
    return found[:-1] if not found[-1] else found


def _object(line: bytes) -> dict[str, Any] | None:
    if b"\0" in line or len(line) >= MAX_LINE_BYTES:
        return None
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def array(content: bytes) -> list[dict[str, Any] | None] | None:
    """Return the objects of a JSON array, None for other elements. None alone if the file is no array."""
    try:
        values = json.loads(content.removeprefix(BOM).decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or b"\0" in content:
        return None
    return [value if isinstance(value, dict) else None for value in values]


def sentences(content: bytes, cr: bool) -> tuple[int, int]:
    """Return the fewest and the most CoNLL sentences: groups of lines, with or without marks of documents."""
    if cr:
        content = content.replace(b"\r", b"\n")
    groups: list[list[bytes]] = [[]]
    for line in _lines(content):
        if line.strip():
            groups[-1].append(line)
        else:
            groups.append([])
    most = sum(map(bool, groups))
    return most - sum(any(b"-DOCSTART-" in line for line in group) for group in groups), most


def text(contents: Sequence[bytes], roles: Sequence[str], cr: Sequence[bool]) -> list[dict[str, str] | None]:
    """Return the lines of parallel files by role. None for a line that is missing or not UTF-8."""
    files = [_lines(one.replace(b"\r", b"\n") if alone else one) for one, alone in zip(contents, cr, strict=True)]
    rows: list[dict[str, str] | None] = []
    for lines in zip_longest(*files):
        try:
            rows.append({role: line.removesuffix(b"\r").decode() for role, line in zip(roles, lines, strict=True)})
        except (UnicodeDecodeError, AttributeError):
            rows.append(None)
        if any(line is not None and len(line) >= MAX_LINE_BYTES for line in lines):
            rows[-1] = None
    return rows


def table(kind: str, content: bytes) -> list[dict[str, Any]] | None:
    """Return the rows of a Parquet or Arrow file as pyarrow reads it at once, or None if it cannot."""
    try:
        return _table(kind, content).to_pylist()
    except Exception:  # pyarrow has many errors for damaged files
        return None


def _table(kind: str, content: bytes) -> Any:
    if kind == "parquet":
        return pq.read_table(io.BytesIO(content), use_threads=False)
    opened = pa_ipc.open_file if content.startswith(b"ARROW1") else pa_ipc.open_stream
    return opened(io.BytesIO(content)).read_all()


def refuses(kind: str, content: bytes) -> bool:
    """Return whether the other reader cannot read the file either, or finds no rows."""
    if kind == "json":
        return array(content) is None
    found = table(kind, content)
    return not found


def check_csv(content: bytes, form: Form, rows: list[Row], *, header: bool) -> None:
    """Compare the rows of a CSV file with those of the standard library and of pyarrow, and account for all its lines.

    Raises:
        Broken: a row is lost or another one.
    """
    if form.cr:
        content = content.replace(b"\r", b"\n")
    lines = _lines(content)[form.separator_line :]
    if not header:
        lines = [b"", *lines]  # in place of the header
    while header and lines and lines[0].strip(b"\r") == b"":  # before the header
        lines = lines[1:]
    if form.quote == "backslash" or any(len(line) >= MAX_LINE_BYTES // 2 for line in lines):
        _account(lines, rows)
        return
    names, expected, complete = _strict(lines, form, header)
    if names is None or all(names):  # a column without a name is left out, with the line ends in it
        _account(lines, rows)
    if names is None:
        return
    ours = [None if row.error else list(row.values.values()) for row in rows]
    for number, fields in enumerate(expected):
        own = ours[number] if number < len(ours) else "no row"
        wanted = [field for name, field in zip(names or fields, fields, strict=False) if name or not names]
        if own is not None and own != wanted:
            raise Broken(f"row {number}: {own!r:.200}, and the standard library reads {wanted!r:.200}")
    if complete and len(ours) != len(expected):
        raise Broken(f"{len(ours)} rows, and the standard library reads {len(expected)}")
    if complete and header and None not in ours:
        _check_pyarrow(lines, form, names, ours)


def _account(lines: Sequence[bytes], rows: list[Row]) -> None:
    """Every line is the header, blank, or part of a row."""
    taken = sum(row.lines if row.error else 1 + _line_ends(row) for row in rows)
    blank = sum(not line.strip() for line in lines)
    if lines and not 0 <= len(lines) - taken - 1 <= blank + _line_ends_of_header(lines, rows):
        raise Broken(f"{len(lines)} lines, of which {blank} are blank and {taken} are of rows")


def _line_ends(row: Row) -> int:
    return sum(str(value).count("\n") for value in row.values.values())


def _line_ends_of_header(lines: Sequence[bytes], rows: list[Row]) -> int:
    """Return the lines that a quoted header may take."""
    return lines[0].count(b'"') and len(lines)


def _strict(lines: Sequence[bytes], form: Form, header: bool) -> tuple[list[str] | None, list[list[str]], bool]:
    """Return the header and the records up to the first error, and whether there is none."""
    quoting = {"quoting": csv.QUOTE_NONE} if form.quote == "none" else {"quotechar": form.quote}
    decoded = [line.decode("utf-8", "surrogateescape") + "\n" for line in lines]
    reader: Any = csv.reader(decoded, delimiter=form.delimiter, strict=True, **quoting)  # type: ignore[call-overload]
    found: list[list[str]] = []
    try:
        found.extend(fields for fields in reader if fields)
        complete = True
    except csv.Error:
        complete = False
    if not header:
        return [], found, complete
    if not found:
        return None, [], complete
    names = [name.strip() for name in found[0]]
    return (names if len(set(names)) == len(names) else None), found[1:], complete


def _check_pyarrow(lines: Sequence[bytes], form: Form, names: Sequence[str], ours: Sequence[Any]) -> None:
    content = b"\n".join(lines[1:]) + b"\n"  # skip_rows_after_names would take rows with an odd quote, too
    if not names or not all(names) or len(names) < 2 or b"\r" in content or form.quote == "none" or not ours:
        return
    if lines[0].strip() == b"" or form.quote.encode() in lines[0] or form.delimiter in " \n":
        return
    text_columns = {name: pa.string() for name in names}
    read = pa_csv.read_csv(
        io.BytesIO(content),
        read_options=pa_csv.ReadOptions(column_names=list(names), use_threads=False),
        parse_options=pa_csv.ParseOptions(delimiter=form.delimiter, quote_char=form.quote, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=text_columns, strings_can_be_null=False),
    )
    other = [list(row.values()) for row in read.to_pylist()]
    if other != list(ours):
        raise Broken(f"{len(ours)} rows {ours!r:.200}, and pyarrow reads {len(other)}: {other!r:.200}")
