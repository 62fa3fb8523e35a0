"""`data.mix` of a recipe: corpora that are trained on in fixed proportions."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainer.recipe.patterns import RUN_NAME
from trainer.recipe.section import Patterns, Positive, Section, Written


def column_names(columns: Any) -> Any:
    """Turn numbers into names: columns of a file without a header are named by numbers."""
    if not isinstance(columns, dict):
        return columns
    return {role: str(column) if type(column) is int else column for role, column in columns.items()}


class CorpusConfig(Section):
    """A corpus of `data.mix`: where its training rows are, and how many of them are used."""

    name: str = Field(pattern=RUN_NAME, description="name in reports, in the ledger and in messages")
    root: str | None = Field(None, description="any fsspec URL; null = data.root")
    train: Patterns = Field(description="file pattern(s) below root, or a mapping role: file for parallel text files")
    columns: dict[str, str] = Field(
        default_factory=dict, description="role: column, for the roles whose column is not that of data.columns"
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="share of the rows of each block, relative to the other weights"
    )
    rows_per_epoch: Positive | None = Field(None, description="rows of an epoch, in place of weight")
    on_end: Literal["stop", "repeat"] = Field(
        "stop", description="when all rows were used, stop: end the epoch; repeat: begin again in another order"
    )

    _numbered = field_validator("columns", mode="before", json_schema_input_type=dict[str, Written])(column_names)


def without_train(values: Any) -> Any:
    """Return the values of the `data` section. With `mix`, `train` has no patterns."""
    return {"train": [], **values} if isinstance(values, dict) and values.get("mix") else values


def mix_problem(data: Any) -> str | None:
    """Return what is wrong with the mixture of a `data` section."""
    if not data.mix:
        return None if data.mix_temperature is None else "mix_temperature is set without mix: leave it out, or list mix"
    if data.train != []:
        return f"mix and train={data.train!r} are both set: leave train out, or make it an entry of mix"
    if repeated := [name for name, count in Counter(entry.name for entry in data.mix).items() if count > 1]:
        return f"mix: two entries have the name {repeated[0]!r}; give each corpus its own name"
    keys = ("weight", "rows_per_epoch")
    for entry in data.mix:
        both = [key for key in keys if getattr(entry, key) is not None]
        if len(both) == 2:
            return f"mix.{entry.name}: weight and rows_per_epoch are both set; leave one of them out"
        if both and data.mix_temperature is not None:
            return f"mix.{entry.name}.{both[0]} and mix_temperature are both set; leave one of them out"
        if not both and data.mix_temperature is None:
            return f"mix.{entry.name}: give weight or rows_per_epoch, or set mix_temperature for all entries"
        other = next((key for key in keys if getattr(data.mix[0], key) is not None), None)
        if both and both[0] != other:
            return f"mix.{entry.name} has {both[0]} and mix.{data.mix[0].name} has {other}; use one of them for all"
    return None
