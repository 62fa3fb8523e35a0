"""Rows of Parquet and Arrow files. Only the columns that a task uses are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data.formats import BadFile, Parsed, opened
from trainer.data.paths import UNREAD, matching

BATCH_ROWS = 1000


class ClassIndex(int):
    """A class index of a `ClassLabel` column of the library `datasets`.

    Attributes:
        names: all class names of the column, in the order of their indices.
    """

    names: tuple[str, ...]

    def __new__(cls, index: int, names: tuple[str, ...]) -> ClassIndex:
        made = super().__new__(cls, index)
        made.names = names
        return made

    def __reduce__(self) -> Any:
        return ClassIndex, (int(self), self.names)


def table_batches(url: str, kind: str, row: int, wanted: Sequence[str] | None) -> Iterator[list[Parsed]]:
    """Rows from `row` on, at most BATCH_ROWS at a time.

    Args:
        url: of the file.
        kind: parquet, arrow or prepared (Parquet with every column read).
        row: the first row; Parquet row groups before it are not read.
        wanted: columns and dotted paths that are used; None for all columns of text, numbers and truth values.

    Raises:
        BadFile: a wanted column has a type that holds no text.
    """
    read = _arrow if kind == "arrow" else _parquet
    for batch, names, classes in read(url, row, wanted, kind == "prepared"):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield _rows(batch.slice(start, BATCH_ROWS), names, classes)


def _parquet(url: str, row: int, wanted: Sequence[str] | None, everything: bool) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with opened(url) as stream, pq.ParquetFile(stream) as file:
        schema, metadata = file.schema_arrow, file.metadata
        columns = None if everything else _chosen(schema, wanted)
        names, classes = _other_names(schema, columns), _classes(schema)
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).num_rows
            if row >= size:
                row -= size
                continue
            for batch in file.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
                if row < batch.num_rows:
                    yield batch.slice(row), names, classes
                row = max(0, row - batch.num_rows)


def _arrow(url: str, row: int, wanted: Sequence[str] | None, everything: bool) -> Iterator[Any]:
    """An Arrow IPC stream, as `save_to_disk` writes it, or an Arrow file (Feather)."""
    import pyarrow as pa

    with opened(url) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        schema = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream).schema
        columns = _chosen(schema, wanted)
        tops = {column if column in schema.names else column.partition(".")[0] for column in columns}
        options = pa.ipc.IpcReadOptions(included_fields=[i for i, name in enumerate(schema.names) if name in tops])
        names, classes = _other_names(schema, columns), _classes(schema)
        stream.seek(0)
        if is_file:
            reader = pa.ipc.open_file(stream, options=options)
            batches: Any = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = pa.ipc.open_stream(stream, options=options)
        for batch in batches:
            if row < batch.num_rows:
                yield batch.slice(row), names, classes
            row = max(0, row - batch.num_rows)


def _paths(fields: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> type of every column that is no struct, and of the fields of structs."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for field in fields:
        if pa.types.is_struct(field.type):
            found |= _paths([field.type.field(i) for i in range(field.type.num_fields)], f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field.type
    return found


def _chosen(schema: Any, wanted: Sequence[str] | None) -> list[str]:
    """The paths to read: those wanted if all of them exist, otherwise every readable one, for the message."""
    paths = _paths(schema)
    found = [matching(paths, column) for column in wanted or ()]
    if wanted is None or None in found:
        return [path for path, kind in paths.items() if _is_readable(kind)]
    columns = [path for path in dict.fromkeys(found) if path is not None]
    for path in columns:
        if schema.names.count(path) > 1:
            raise BadFile(f"it has {schema.names.count(path)} columns {path!r}; rename one of them")
        if not _is_readable(paths[path]):
            raise BadFile(f"column {path!r} has the type {paths[path]}, {_remedy(paths[path])}")
    return columns


def _is_readable(kind: Any) -> bool:
    import pyarrow as pa

    t = pa.types
    if t.is_dictionary(kind):
        return _is_readable(kind.value_type)
    plain = (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_decimal, t.is_null)
    return any(test(kind) for test in plain) or str(kind) == "string_view"


def _remedy(kind: Any) -> str:
    if "binary" in str(kind):
        return (
            "which is bytes and no text. Write it as text, in pandas df[column] = df[column].str.decode('utf-8'), "
            "or name another column in data.columns"
        )
    return "which is no text and no label. Write it as text, or name another column in data.columns"


def _other_names(schema: Any, columns: Sequence[str] | None) -> dict[str, object]:
    """Column -> UNREAD for what is not read, but for fields of a struct of which others are."""
    if columns is None:
        return {}
    read = {*columns, *(column.partition(".")[0] for column in columns)}
    return {path: UNREAD for path in _paths(schema) if not {path, path.partition(".")[0]} & read}


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Column -> class names, from the features that `datasets` stores in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, ValueError, TypeError, AttributeError):  # written by another program
        return {}


def _rows(batch: Any, others: dict[str, object], classes: dict[str, tuple[str, ...]]) -> list[Parsed]:
    try:
        rows: list[Parsed] = [(values, None) for values in batch.to_pylist()]
    except UnicodeDecodeError:
        rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for values, problem in rows:
        if problem is None:
            for name, names in classes.items():
                index = values.get(name)
                if type(index) is int:
                    values[name] = ClassIndex(index, names)
            values.update(others)
    return rows


def _row(batch: Any) -> Parsed:
    values: dict[str, object] = {}
    for name in batch.schema.names:
        try:
            values[name] = batch.column(name)[0].as_py()
        except UnicodeDecodeError:
            return {}, f"invalid UTF-8 in column {name!r}"
    return values, None
