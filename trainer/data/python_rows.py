"""Rows of a Python program: lists and iterables of dicts, data frames, Arrow tables and data sets of `datasets`.

`write_rows` writes them as one Parquet file per split into `data/` of a run directory, so that a run can be resumed and
evaluated without the program that made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.columns import as_yaml, guess_columns
from trainer.data.paths import flat, matching
from trainer.data.roles import Roles
from trainer.errors import DataError, UsageError
from trainer.files import make_folder, read_json, replacing
from trainer.recipe import Recipe
from trainer.rundir import RunDir

SPLITS = ("train", "validation", "test")
KINDS = "a list or iterable of dicts, a pandas or polars DataFrame, an Arrow table, or a data set of `datasets`"
SAMPLE = 20  # rows from which the columns are guessed for a message
WINDOW = 100_000  # dicts whose types are determined together; later ones must have the same types
GROUP_ROWS = 1000  # rows of a Parquet row group: a resumed reader reads at most this many too many
DIGEST = b"rankzero.rows"  # metadata of the file: the SHA-256 of its rows


class _Unchanged(Exception):
    """The rows are those of the existing file, which is kept."""


def split_overrides(rows: Mapping[str, Any]) -> list[str]:
    """Return the overrides that name the files of `rows` in a recipe, except their folder.

    Raises:
        UsageError: `rows` is not a mapping of splits, or has no split "train".
    """
    if not isinstance(rows, Mapping) or "train" not in rows or not rows.keys() <= set(SPLITS):
        names = f"the keys {', '.join(map(repr, rows))}" if isinstance(rows, Mapping) else f"a {type(rows).__name__}"
        raise UsageError(
            f'train: data is {names}; give {{"train": rows}}, with "validation" and "test" if there are such rows. '
            f"Rows are {KINDS}"
        )
    test = "test.parquet" if "test" in rows else "null"
    validation = ["data.validation=validation.parquet"] if "validation" in rows else []
    own = ["data.dataset=null", "data.revision=null", "data.mix=[]", "data.train=train.parquet"]
    return [*own, f"data.test={test}", *validation]


def write_rows(run: RunDir, rows: Mapping[str, Any], recipe: Recipe, roles: Roles) -> None:
    """Write the columns of each split that the task uses to `data/<split>.parquet`, unless the same rows are there.

    Raises:
        DataError: rows without a column of the task, values that have no common type, or other rows than those that
            the run has begun with.
    """
    begun = (read_json(run.manifest) or {}).get("data") or {}
    make_folder(run.data)
    for split, of_split in rows.items():
        path = run.data / f"{split}.parquet"
        earlier = _digest_of(path)
        with contextlib.suppress(_Unchanged), replacing(path) as file:
            digest = _write(file, _tables(of_split, roles, recipe.data.columns, f"data[{split!r}]"), split)
            if digest == earlier:
                raise _Unchanged
            if split in begun and earlier is not None:  # a damaged file is written again and then compared
                raise DataError(
                    f"data[{split!r}] has changed since this run began (SHA-256 of its rows {earlier[:12]} "
                    f"-> {digest[:12]}): give the same rows, resume without `data`, or start with fresh=True"
                )


def with_own_rows(recipe: Recipe, run: RunDir) -> Recipe:
    """Return the recipe of a run with rows in its `data/`, with the folder's present place if it has been moved."""
    root = recipe.data.root
    if "://" in root or Path(root).exists() or not (run.data / "train.parquet").is_file():
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": str(run.data.absolute())})})


def iter_rows(rows: Any, columns: Collection[str]) -> Iterator[Any]:
    """Yield texts and dicts as they are, and the rows of a data frame, an Arrow table or a data set as dicts.

    Args:
        rows: texts, or any kind of rows.
        columns: the columns that are used.
    """
    rows = rows.collect() if _is_lazy(rows) else rows
    if hasattr(rows, "__arrow_c_stream__"):
        for table in _frame_tables(rows, columns, "rows"):
            yield from table.to_pylist()
        return
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise UsageError(f"predict: a single {type(rows).__name__}; give a list of texts, or {KINDS}")
    for number, row in enumerate(rows):
        tokens = isinstance(row, list | tuple) and all(isinstance(token, str) for token in row)
        if not (isinstance(row, str | Mapping) or tokens):
            raise UsageError(f"predict: row {number} is a {type(row).__name__}; give a list of texts, or {KINDS}")
        yield row


def _is_lazy(rows: Any) -> bool:
    return type(rows).__name__ == "LazyFrame" and type(rows).__module__.startswith("polars.")


def _digest_of(path: Path) -> str | None:
    """Return the digest that was stored in an existing file."""
    try:
        return (pq.read_metadata(path).metadata or {}).get(DIGEST, b"").decode() or None
    except (OSError, pa.ArrowException):  # there is no file, or it is damaged: it is written again
        return None


def _write(file: Any, tables: Iterator[pa.Table], split: str) -> str:
    """Write tables of one schema as Parquet. Return the SHA-256 of their rows, whatever their types are."""
    digest = hashlib.sha256()
    try:
        first = next(tables, None)
        if first is None:
            raise DataError(f"data[{split!r}] has no rows; give at least one")
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            for table in chain((first,), tables):
                writer.write_table(table, row_group_size=GROUP_ROWS)
                for row in table.to_pylist():
                    digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
            writer.add_key_value_metadata({DIGEST: digest.hexdigest().encode()})
    except (pa.ArrowException, ValueError) as error:  # the latter for a table of another schema than the first
        raise DataError(
            f"data[{split!r}] cannot be written as Parquet: {error}. Give all values of a column one type"
        ) from error
    return digest.hexdigest()


def _tables(rows: Any, roles: Roles, columns: Mapping[str, str], name: str) -> Iterator[pa.Table]:
    """Yield the rows as tables of one schema, with the columns that the task uses."""
    used = [columns.get(role, role) for role in roles]
    rows = rows.collect() if _is_lazy(rows) else rows
    try:
        if hasattr(rows, "__arrow_c_stream__"):
            yield from _frame_tables(rows, used, name)
        elif hasattr(rows, "select_columns"):  # Dataset and IterableDataset of `datasets`
            sample = list(islice(rows, SAMPLE))
            chosen = _used(rows.column_names or list(sample[0] if sample else ()), used, name, sample)
            for table in rows.select_columns(chosen).with_format("arrow").iter(GROUP_ROWS):
                features = rows.features.arrow_schema.metadata if rows.features else None
                yield table.replace_schema_metadata(features)
        else:
            yield from _dict_tables(rows, used, name)
    except _MissingColumn as error:
        guess = guess_columns(roles, [flat(row) for row in error.sample], columns)
        hint = f"data.columns={as_yaml(guess)}" if guess else "data.columns={ROLE: COLUMN}"
        raise DataError(f"{error}. Add the override {hint}, or rename the column") from None


class _MissingColumn(DataError):
    """Rows lack a column that the task uses. `sample`: a few rows, or their columns without values."""

    def __init__(self, message: str, sample: Sequence[Mapping[str, Any]]):
        super().__init__(message)
        self.sample = sample


def _used(names: Sequence[str], used: Iterable[str], name: str, sample: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return the top-level columns of the used columns and dotted paths."""
    tops = []
    for column in used:
        parts = column.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        top = next((found for prefix in prefixes if (found := matching(names, prefix)) is not None), None)
        if top is None:
            there = ", ".join(map(str, names)) or "none"
            raise _MissingColumn(
                f"{name} has no column {column!r}; columns there: {there}", sample or [dict.fromkeys(names)]
            )
        tops.append(top)
    return list(dict.fromkeys(tops))


def _frame_tables(rows: Any, used: Iterable[str], name: str) -> Iterator[pa.Table]:
    """Yield the used columns of a data frame or an Arrow table. Other columns may have types that Arrow lacks."""
    if type(rows).__module__.partition(".")[0] in ("pandas", "polars"):
        names = {str(column): column for column in rows.columns}
        chosen = _used(list(names), used, name)
        rows = rows[[names[column] for column in chosen]]
        rows = rows.rename(columns=str) if hasattr(rows, "iloc") else rows
    reader = pa.RecordBatchReader.from_stream(rows)
    chosen = _used(reader.schema.names, used, name)
    for batch in reader:
        yield pa.Table.from_batches([batch]).select(chosen).replace_schema_metadata(None)


def _dict_tables(rows: Iterable[Any], used: Iterable[str], name: str) -> Iterator[pa.Table]:
    """Yield the used columns of dicts. The types are those of the first WINDOW rows."""
    if not isinstance(rows, Iterable):
        raise DataError(f"{name} is a {type(rows).__name__}; rows are {KINDS}")
    source, schema, chosen, begin = iter(rows), None, list[str](), 0
    while window := list(islice(source, WINDOW)):
        for number, row in enumerate(window, start=begin):
            if not isinstance(row, Mapping):
                raise DataError(f"{name}: row {number} is a {type(row).__name__}, not a dict; rows are {KINDS}")
        keys = {str(key): key for row in window for key in row}
        chosen = chosen or _used(list(keys), used, name, window[:SAMPLE])
        arrays = []
        for column in chosen:
            values = [row.get(keys.get(column, column)) for row in window]
            kind = None if schema is None else schema.field(column).type
            arrays.append(_array(values, kind, f"{name}: column {column!r}", begin))
        table = pa.table(arrays, names=chosen)
        schema, begin = table.schema, begin + len(window)
        yield table


def _array(values: Sequence[Any], kind: Any, where: str, begin: int) -> pa.Array:
    """Return values as an Arrow array. NaN is null.

    Raises:
        DataError: names the first row whose value has another type than the values before it.
    """
    try:
        array = pa.array(values, kind, from_pandas=True)
        return array.cast(pa.string()) if pa.types.is_null(array.type) else array
    except (pa.ArrowException, OverflowError) as error:
        kinds = [type(value) for value in values if value is not None]
        at = next((i for i, value in enumerate(values) if value is not None and type(value) is not kinds[0]), 0)
        raise DataError(
            f"{where} holds {values[at]!r:.60} in row {begin + at}, which has another type than the rows before it "
            f"({error}). Give all values of a column one type"
        ) from error
