"""One pass over a split before anything is trained: read and clean every row, and report what is wrong."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from trainer.data.cleaning import BadRow, Cleaner, clean_row, cleaner
from trainer.data.columns import flat
from trainer.data.discovery import Shard
from trainer.data.line_numbers import Span, lines_of
from trainer.data.row_hints import FileMistake
from trainer.data.sniffing import Form
from trainer.data.sources import Row, ShardStream, Source, Split, fingerprint, held_out
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

EXAMPLES = 5  # bad rows that a report quotes
QUOTED = 10  # bad rows that an error quotes
KINDS = 100  # reasons that are counted apart
# Rows read of a file, at most, after a first bad row: to see whether all are bad, and to quote QUOTED of them.
ALL_BAD, MORE = 1000, 100_000
NOT_INPUT = ("label", "trg")  # roles that a model is not given


@dataclass
class Survey:
    """What a split holds.

    Attributes:
        split: its name.
        rows: usable rows of the split.
        read: rows read, those of the other side of a held-out share included.
        shard_rows: rows read of each shard.
        bad: reason -> rows of the split.
        examples: the first few bad rows, as sentences.
        labels: label -> usable rows, for tasks with labels.
        inputs: a digest of 8 bytes of the cleaned input of each usable row.
        fingerprint: of the split's files, see `sources.fingerprint`.
        lost: lines that bad rows take beyond one each.
    """

    split: str
    rows: int = 0
    read: int = 0
    shard_rows: list[int] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    inputs: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    fingerprint: str = ""
    lost: int = 0

    def report(self) -> dict[str, Any]:
        """The part that belongs into manifest.json."""
        return {
            "rows": self.rows,
            "bad_rows": dict(sorted(self.bad.items())),
            "bad_examples": self.examples,
            "labels": dict(sorted(self.labels.items())),
            "fingerprint": self.fingerprint,
        }

    def shared_with(self, other: Survey) -> int:
        """How many rows have an input that is also in another split."""
        ours, theirs = (np.frombuffer(split.inputs, np.uint64) for split in (self, other))
        return int(np.isin(ours, theirs).sum())


def survey(source: Source, data: DataConfig, roles: Iterable[str], split: Split = "train") -> Survey:
    """Read a whole split once, as a stream.

    Args:
        source: from `open_split(data, split)`.
        data: cleaning, columns, what to do with bad rows; a share of train for validation counts on its side only.
        roles: those that the task reads.
        split: for the messages; the number of lanes is checked for "train".

    Raises:
        DataError: a bad row where `data.on_bad_row` is fail, more of them than `data.max_bad_fraction`, no usable row,
            or more lanes than rows.
    """
    found = Survey(split)
    reading = _Reading(data, dict(roles) if isinstance(roles, Mapping) else dict.fromkeys(roles), found)
    for index, shard in enumerate(source.shards):
        before = found.read
        reading.shard(source.stream(index), shard)
        found.shard_rows.append(found.read - before)
    reading.check([shard.name for shard in source.shards])
    found.fingerprint = fingerprint(source)
    return found


class _Reading:
    """A pass over the shards of a split, counted in a `Survey`."""

    def __init__(self, data: DataConfig, roles: Mapping[str, Collection[str] | None], found: Survey) -> None:
        self._data, self._roles, self._found = data, roles, found
        self._clean: Cleaner = cleaner(data.cleaning)
        self._inputs = [role for role in roles if role not in NOT_INPUT]
        self._share = data.validation if isinstance(data.validation, float) and found.split != "test" else None
        self._mistakes: list[FileMistake] = []

    def shard(self, stream: ShardStream, shard: Shard) -> None:
        """Read one file.

        Raises:
            DataError: it has a bad row, and `data.on_bad_row` is fail.
        """
        fail, good, read = self._data.on_bad_row == "fail", 0, 0
        bad: list[tuple[BadRow, Span]] = []
        mistake: FileMistake | None = None
        first_at, before = 0, stream.offsets
        for row in stream:
            read += 1
            texts = clean_row(row, self._roles, self._data.columns, self._clean)
            if isinstance(texts, BadRow):
                if mistake is None and not good and not bad:
                    mistake = FileMistake(self._found.split, shard, texts)
                first_at = first_at or read
                if mistake is not None:
                    mistake = _joined(mistake, row, texts, read)
                if len(bad) < QUOTED:
                    bad.append((texts, (before, stream.offsets)))
                if not fail and self._here(row):
                    self._count(texts)
                    self._found.lost += row.lines - 1
            else:
                good, mistake = good + 1, None
                self._add(texts)
            before = stream.offsets
            enough = len(bad) >= QUOTED if good else read >= ALL_BAD
            if fail and bad and (enough or read >= first_at + MORE):
                break
        self._found.read += read
        if mistake is not None:
            self._mistakes.append(mistake)
        if fail and bad:
            self._refuse(shard, bad, stream.form)
        if room := EXAMPLES - len(self._found.examples):
            self._found.examples += _sentences(shard, bad[:room], stream.form)

    def _here(self, row: Row) -> bool:
        """Whether a bad row is on this split's side of a share held out: by its values as they are."""
        if self._share is None:
            return True
        values = {str(name): repr(value) for name, value in row.values.items()} or {"id": repr(row.id)}
        return held_out(values, self._share) == (self._found.split == "validation")

    def _count(self, row: BadRow) -> None:
        reason = row.reason if row.column is None else f"column {row.column!r} {row.reason}"
        if reason not in self._found.bad and len(self._found.bad) >= KINDS:
            reason = "other reasons"
        self._found.bad[reason] += 1

    def _add(self, texts: Mapping[str, str]) -> None:
        if self._share is not None and held_out(texts, self._share) != (self._found.split == "validation"):
            return
        self._found.rows += 1
        if "label" in texts:
            self._found.labels[texts["label"]] += 1
        content = "\0".join(texts[role] for role in self._inputs).encode("utf-8", "surrogatepass")
        self._found.inputs.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))

    def _refuse(self, shard: Shard, bad: Sequence[tuple[BadRow, Span]], form: Form) -> NoReturn:
        if self._mistakes:
            raise DataError(self._mistakes[0].message(self._data, self._roles))
        rows = _sentences(shard, bad, form)
        fix = (
            f"Fix the row{'s' * (len(rows) > 1)}, or set data.on_bad_row=skip to leave out up to "
            f"data.max_bad_fraction={self._data.max_bad_fraction:g} of all rows"
        )
        if len(rows) == 1:
            raise DataError(f"data.{self._found.split}: {rows[0]}. {fix}")
        listed = "".join(f"\n  {row}" for row in rows)
        count = f"the first {QUOTED} bad rows" if len(rows) == QUOTED else f"{len(rows)} bad rows"
        raise DataError(f"data.{self._found.split}: {count} of {shard.name}:{listed}\n{fix}")

    def check(self, names: Sequence[str]) -> None:
        """Refuse a split with too many bad rows, without a usable row, or with fewer rows than lanes."""
        found, data = self._found, self._data
        bad = found.bad.total()
        if bad + found.lost > data.max_bad_fraction * (found.rows + bad + found.lost):
            if self._mistakes:
                raise DataError(self._mistakes[0].message(data, self._roles))
            share = (bad + found.lost) / (found.rows + bad + found.lost)
            weighed = f" of the lines, {bad + found.lost} in number" if found.lost else ""
            kinds = "".join(f"\n  {count} x {reason}" for reason, count in found.bad.most_common(QUOTED))
            quoted = "".join(f"\n  {sentence}" for sentence in found.examples)
            raise DataError(
                f"data.{found.split}: {bad} of {found.rows + bad} rows are bad ({share:.2%}{weighed}), more "
                f"than data.max_bad_fraction={data.max_bad_fraction:g}:{kinds}\nThe first ones:{quoted}"
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


def _joined(mistake: FileMistake, row: Row, bad: BadRow, read: int) -> FileMistake | None:
    """The mistake of a file with one more row; None where the row has another fault."""
    if not mistake.same(bad):
        return None
    mistake.read = read
    if len(mistake.rows) < 2 * QUOTED:
        mistake.rows.append(flat(row.values))
    if bad.unknown is not None and (bad.unknown in mistake.unknown or len(mistake.unknown) < KINDS):
        mistake.unknown[bad.unknown] += 1
    return mistake


def _sentences(shard: Shard, bad: Sequence[tuple[BadRow, Span]], form: Form) -> list[str]:
    lines = lines_of(shard, form, [span for _, span in bad])
    return [row.describe(shard.name, line) for (row, _), line in zip(bad, lines, strict=True)]
