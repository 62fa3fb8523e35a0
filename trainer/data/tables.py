"""Rows of Parquet and Arrow files. Only the columns that a task uses are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.formats import SHORT_BYTES, BadFile, Parsed, opened, short_reads
from trainer.data.labels import ClassIndex
from trainer.data.paths import UNREAD, matching

if TYPE_CHECKING:
    from trainer.data.sniffing import Reading

BATCH_ROWS = 1000
SHORT_ROWS = 100  # where only the first rows of a file are read
PAGE_BYTES = 1 << 20  # of a page before compression, as most programs write it


def table_batches(url: str, kind: str, row: int, reading: Reading) -> Iterator[list[Parsed]]:
    """Yield rows, at most BATCH_ROWS at a time.

    Args:
        url: of the file.
        kind: parquet, arrow or prepared (Parquet with every column read).
        row: the first row; Parquet row groups before it are not read.
        reading: the columns and dotted paths that are used; if None, all columns of text, numbers and truth values.

    Raises:
        BadFile: a used column has a type that its role cannot have.
    """
    read = _arrow if kind == "arrow" else _parquet
    with opened(url) as stream:
        for batch, schema, columns in read(stream, row, None if kind == "prepared" else reading):
            unread, classes = _unread(schema, columns), _classes(schema)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield _rows(batch.slice(start, BATCH_ROWS), unread, classes)


def _parquet(stream: Any, row: int, reading: Reading | None) -> Iterator[Any]:
    """Yield batches from a row on, each with the schema of the file and the columns that are read."""
    # whole row groups, or only the pages of the first rows
    options: dict[str, Any] = {} if short_reads.get() is None else {"buffer_size": SHORT_BYTES, "pre_buffer": False}
    size = SHORT_ROWS if options else BATCH_ROWS
    with pq.ParquetFile(stream, **options) as file:
        columns, groups = _chosen(file.schema_arrow, reading), list(range(file.metadata.num_row_groups))
        while groups and row >= (rows := file.metadata.row_group(groups[0]).num_rows):
            row -= rows
            groups.pop(0)
        for part in [[group] for group in groups] if options else [groups]:  # it would begin the next group, too
            for batch in file.iter_batches(size, part, columns, use_threads=False):
                if row < batch.num_rows:
                    yield batch.slice(row), file.schema_arrow, columns
                row = max(0, row - batch.num_rows)


def first_rows_bytes(file: Any, reading: Reading | None) -> int:
    """Return about how many bytes the first rows of a Parquet file take: a page of each used column and its dictionary.

    A dictionary is needed for one row as for all. Return 0 if a column is missing: then rows are read for the message.

    Args:
        file: a `ParquetFile`.
        reading: as for `table_batches`.

    Raises:
        BadFile: a used column has a type that its role cannot have.
    """
    types = _types(file.schema_arrow)
    columns = _chosen(file.schema_arrow, reading) or list(types)
    missing = [column for column in (reading and reading.wanted) or () if matching(types, column) is None]
    if missing or not file.metadata.num_row_groups:
        return 0
    group, total = file.metadata.row_group(0), 0
    for column in map(group.column, range(group.num_columns)):
        if any(column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.") for name in columns):
            begin = column.dictionary_page_offset
            dictionary = max(0, column.data_page_offset - begin) if begin else 0
            pages = max(1, column.total_uncompressed_size // PAGE_BYTES)
            total += dictionary + (column.total_compressed_size - dictionary) // pages
    return total


def _arrow(stream: Any, row: int, reading: Reading | None) -> Iterator[Any]:
    """Yield the same of an Arrow IPC stream, as `save_to_disk` writes it, or of an Arrow file (Feather)."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    schema = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream).schema
    columns = _chosen(schema, reading) or []
    tops = {column if column in schema.names else column.partition(".")[0] for column in columns}
    options = pa.ipc.IpcReadOptions(included_fields=[i for i, name in enumerate(schema.names) if name in tops])
    stream.seek(0)
    reader: Any = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream, options=options)
    for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
        if row < batch.num_rows:
            yield batch.slice(row), schema, columns
        row = max(0, row - batch.num_rows)


def _types(fields: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted path -> type of every column that is not a struct, and of the fields of structs."""
    types: dict[str, Any] = {}
    for field in fields:
        if pa.types.is_struct(field.type):
            types |= _types([field.type.field(i) for i in range(field.type.num_fields)], f"{prefix}{field.name}.")
        else:
            types[f"{prefix}{field.name}"] = field.type
    return types


def _chosen(schema: Any, reading: Reading | None) -> list[str] | None:
    """Return the paths to read, None for all of a prepared corpus. If one is missing: all that messages can list."""
    if reading is None:
        return None
    types = _types(schema)
    names = {column: matching(types, column) for column in reading.wanted or ()}
    if reading.wanted is None or None in names.values():
        return [path for path, kind in types.items() if _is_readable(kind, False)]
    columns: list[str] = []
    for column, path in names.items():
        assert path is not None
        if schema.names.count(path) > 1:
            raise BadFile(f"it has {schema.names.count(path)} columns {path!r}; rename one of them")
        if not _is_readable(types[path], column in reading.lists):
            raise BadFile(f"column {path!r} has the type {types[path]}, {_remedy(types[path])}")
        if path not in columns:
            columns.append(path)
    return columns


def _is_readable(kind: Any, may_be_list: bool) -> bool:
    t = pa.types
    if t.is_dictionary(kind):
        return _is_readable(kind.value_type, may_be_list)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        of_structs = t.is_struct(kind.value_type) and all(_is_readable(field.type, False) for field in kind.value_type)
        return may_be_list and (of_structs or _is_readable(kind.value_type, False))
    plain = (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_decimal, t.is_null)
    return any(test(kind) for test in plain) or str(kind) == "string_view"


def _remedy(kind: Any) -> str:
    if "binary" in str(kind):
        return (
            "which is bytes, not text. Write it as text, in pandas df[column] = df[column].str.decode('utf-8'), "
            "or name another column in data.columns"
        )
    return "which is neither text nor a label. Write it as text, or name another column in data.columns"


def _unread(schema: Any, columns: Sequence[str] | None) -> dict[str, object]:
    """Return column -> UNREAD for the columns that are not read. Structs of which a field is read are left out."""
    if columns is None:
        return {}
    read = {*columns, *(column.partition(".")[0] for column in columns)}
    return {path: UNREAD for path in _types(schema) if not {path, path.partition(".")[0]} & read}


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return column -> class names, from the features that `datasets` stores in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):  # written by another program
        return {}
    classes = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}  # of a list
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            classes[name] = tuple(map(str, inner["names"]))
    return {name: names for name, names in classes.items() if names}


def _rows(batch: Any, unread: dict[str, object], classes: dict[str, tuple[str, ...]]) -> list[Parsed]:
    try:
        rows = [Parsed(values) for values in batch.to_pylist()]
    except UnicodeDecodeError:
        rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for values, problem, _ in rows:
        if problem is None:
            for name in classes.keys() & values.keys():
                values[name] = _with_names(values[name], classes[name])
            values.update(unread)
    return rows


def _with_names(value: object, names: tuple[str, ...]) -> object:
    if isinstance(value, list):
        return [_with_names(item, names) for item in value]
    return ClassIndex(value, names) if type(value) is int else value


def _row(batch: Any) -> Parsed:
    values: dict[str, object] = {}
    for name in batch.schema.names:
        try:
            values[name] = batch.column(name)[0].as_py()
        except UnicodeDecodeError:
            return Parsed({}, f"invalid UTF-8 in column {name!r}")
    return Parsed(values)
