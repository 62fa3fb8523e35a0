"""What `rankzero init` remarks about the labels of a column: what is uncertain, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.data.columns import as_yaml
from trainer.data.labels import look_alike
from trainer.data.profile import Column, Table

FEW = 5  # rows of a class that are too few to learn from and to score
SHOWN = 5


def label_remarks(label: Column, table: Table) -> Iterator[str]:
    """Yield sentences about the labels of a column."""
    counts = label.labels
    if label.kind == "number" and len(counts) > 2:
        yield (
            f"the {len(counts)} numbers in column {label.name!r} are taken as classes; to predict the number: "
            f"data.columns.value={label.name}"
        )
    if rare := [f"{name} {count}" for name, count in counts.items() if count < FEW]:
        more = f" and {len(rare) - SHOWN} more" if len(rare) > SHOWN else ""
        yield (
            f"classes with fewer than {FEW} rows: {', '.join(rare[:SHOWN])}{more}. They are hardly learned, and may be "
            "missing in validation: add rows, or give them the name of another class in task.labels"
        )
    yield from _alike(list(counts))
    yield from _flags(label, table)


def _alike(names: list[str]) -> Iterator[str]:
    """Yield a sentence about labels that differ by their form only."""
    same = {name: next(other for other in names if look_alike(name, other)) for name in names[:100]}
    if twins := {name: first for name, first in same.items() if name != first}:
        mapping = {name: same.get(name, name) for name in names}
        text = (
            as_yaml(mapping) if len(mapping) <= 10 else "{" + ", ".join(f"{a}: {b}" for a, b in twins.items()) + ", …}"
        )
        name, first = next(iter(twins.items()))
        yield f"labels {first!r} and {name!r} differ by case or spaces only; as one class: task.labels='{text}'"


def _flags(label: Column, table: Table) -> Iterator[str]:
    """Yield a sentence about further columns of 0 and 1, which together may be several labels of a row."""
    flags = [c.name for c in table.columns.values() if c.kind == "number" and c.values and set(c.values) <= {"0", "1"}]
    if label.name in flags and len(flags) > 1:
        yield (
            f"columns {', '.join(flags[:8])} hold 0 and 1, and only {label.name!r} is predicted; for several labels "
            "of a row, write their names into one column, such as toxic|insult"
        )
