"""Columns that the files of this machine lack, by their first rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.data.cleaning import BadRow
from trainer.data.heads import FILE_ROWS, heads
from trainer.data.paths import MISSING, value_at
from trainer.data.roles import Roles
from trainer.data.row_hints import FileMistake
from trainer.data.sources import MixedSource, Row, Source, Split, open_split
from trainer.recipe import Recipe
from trainer.recipe.sections import DataConfig
from trainer.task.registry import roles_of


def missing_columns(recipe: Recipe, split: Split) -> Iterator[tuple[str, str]]:
    """Yield key and message of each column that no row has at the beginning of a file. The first such file counts.

    Raises:
        DataError: a file cannot be read.
    """
    roles = roles_of(recipe)
    source = open_split(recipe.data, split, roles)
    if isinstance(source, MixedSource):
        for number, (section, part) in enumerate(zip(source.sections, source.parts, strict=True)):
            entry = f"data.mix.{number}"
            for key, message in _missing(section, part, roles, split):
                yield key.replace("data", entry, 1), message.replace("data.columns", f"{entry}.columns")
    elif source is not None:
        yield from _missing(recipe.data, source, roles, split)


def _missing(data: DataConfig, source: Source, roles: Roles, split: Split) -> Iterator[tuple[str, str]]:
    for shard, head in zip(source.shards, heads(source, FILE_ROWS), strict=True):
        rows = [row for row in head if row.error is None]
        found = [role for role in _wanted(roles, split) if _lacks(rows, data.columns.get(role, role))]
        for role in found if shard.format != "prepared" else ():
            column = data.columns.get(role, role)
            mistake = FileMistake(split, shard, BadRow(rows[0].id, "is missing", column))
            for number, row in enumerate(rows, 1):
                mistake.add(row, BadRow(row.id, "is missing", column), number)
            text = mistake.message(data, roles).removeprefix(f"data.{split}: ")
            yield f"data.columns.{role}" if role in data.columns else f"data.{split}", text
        if found:
            return


def _wanted(roles: Roles, split: Split) -> list[str]:
    """Return the roles whose columns a split needs: the optional ones are those of the training rows."""
    return [name for name, role in roles.items() if split == "train" or not role.optional]


def _lacks(rows: list[Row], column: str) -> bool:
    values: list[Any] = [value_at(row.values, column) for row in rows]
    return bool(values) and all(value is MISSING for value in values)
