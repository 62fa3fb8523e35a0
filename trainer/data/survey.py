"""One pass over a split before anything is trained: every row is read and cleaned, what is wrong is said at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.sources import Source, Split, fingerprint, held_out
from trainer.errors import DataError
from trainer.sections import DataConfig

EXAMPLES = 5  # bad rows that are quoted


@dataclass
class Survey:
    """What a split holds.

    Attributes:
        split: its name.
        rows: usable rows of the split.
        read: rows read, bad ones and those of the other side of a held-out share included.
        shard_rows: rows read of each shard.
        bad: reason -> rows.
        examples: the first few bad rows, as sentences.
        labels: label -> usable rows, for tasks with labels.
        fingerprint: of the split's files, see `sources.fingerprint`.
    """

    split: str
    rows: int = 0
    read: int = 0
    shard_rows: list[int] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    fingerprint: str = ""

    def report(self) -> dict[str, Any]:
        """The part that belongs into manifest.json."""
        return {
            "rows": self.rows,
            "bad_rows": dict(sorted(self.bad.items())),
            "bad_examples": self.examples,
            "labels": dict(sorted(self.labels.items())),
            "fingerprint": self.fingerprint,
        }


def survey(source: Source, data: DataConfig, roles: Iterable[str], split: Split = "train") -> Survey:
    """Reads a whole split once, as a stream.

    Args:
        source: from `open_split(data, split)`.
        data: cleaning, columns, what to do with bad rows; a share of train for validation counts on its side only.
        roles: those that the task reads.
        split: for the messages; the number of lanes is checked for "train".

    Raises:
        DataError: a bad row where `data.on_bad_row` is fail, more of them than `data.max_bad_fraction`, no usable row,
            or more lanes than rows.
    """
    clean = cleaner(data.cleaning)
    share = data.validation if isinstance(data.validation, float) else None
    found = Survey(split)
    for index, shard in enumerate(source.shards):
        before = found.read
        for row in source.stream(index):
            found.read += 1
            texts = clean_row(row, roles, data.columns, clean)
            if isinstance(texts, BadRow):
                _note(found, texts, shard.name, data)
            elif share is None or split == "test" or held_out(texts, share) == (split == "validation"):
                found.rows += 1
                if "label" in texts:
                    found.labels[texts["label"]] += 1
        found.shard_rows.append(found.read - before)
    _judge(found, data, [shard.name for shard in source.shards])
    found.fingerprint = fingerprint(source)
    return found


def _note(found: Survey, row: BadRow, shard_name: str, data: DataConfig) -> None:
    sentence = row.describe(shard_name)
    if data.on_bad_row == "fail":
        raise DataError(
            f"data.{found.split}: {sentence}. Mend the row, or let data.on_bad_row=skip leave out up to "
            f"data.max_bad_fraction={data.max_bad_fraction:g} of all rows"
        )
    found.bad[row.reason if row.column is None else f"column {row.column!r} {row.reason}"] += 1
    if len(found.examples) < EXAMPLES:
        found.examples.append(sentence)


def _judge(found: Survey, data: DataConfig, names: Sequence[str]) -> None:
    bad = found.bad.total()
    if bad > data.max_bad_fraction * found.read:
        kinds = "".join(f"\n  {count} x {reason}" for reason, count in found.bad.most_common())
        quoted = "".join(f"\n  {sentence}" for sentence in found.examples)
        raise DataError(
            f"data.{found.split}: {bad} of {found.read} rows are bad ({bad / found.read:.2%}), more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g}:{kinds}\nThe first ones:{quoted}"
        )
    if not found.rows:
        side = f" on its side of data.validation={data.validation}" if isinstance(data.validation, float) else ""
        files = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise DataError(
            f"data.{found.split} holds no usable row{side}: {found.read} rows were read from {files} below "
            f"data.root={data.root!r}; point it at files with rows"
        )
    if found.split == "train" and data.lanes > found.rows:
        raise DataError(
            f"data.lanes={data.lanes} is more than the {found.rows} rows of data.train: each lane needs a row; "
            f"set data.lanes to {found.rows} or less"
        )
