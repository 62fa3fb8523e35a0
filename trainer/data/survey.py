"""Survey of a split before training: read and clean its rows, count, and refuse what cannot be trained on.

Of a large split only the first rows of every file are read. The others are checked when they are trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from trainer.data.bad_rows import BadRows
from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.dealer import deals_whole_shards
from trainer.data.discovery import Shard, own_root
from trainer.data.fingerprints import fingerprint
from trainer.data.heads import FILE_ROWS, Head, heads
from trainer.data.roles import Roles
from trainer.data.row_hints import FileMistake
from trainer.data.sniffing import Form
from trainer.data.sources import MixedSource, Row, ShardStream, Source, Split, belongs, of_corpus
from trainer.data.survey_counts import EXAMPLES, LabelParts, Numbers, Survey, count_reason
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig

Check = Literal["auto", "full", "sample", "off"]
LISTED = 10  # reasons of bad rows that an error counts
PART_ROWS = 10_000  # rows that are read of a split of which not all are, at least; FILE_ROWS of each of its files
# Where not all rows have been read, so many count as read: one bad row of the first ten is not 10% of them.
FEW = 10_000
# Rows read of a file, at most, after the first bad row: to see whether all are bad, and to count equal mistakes.
ALL_BAD, MORE = 1000, 100_000


def survey(source: Source, data: DataConfig, roles: Roles, split: Split = "train", of: str | None = None) -> Survey:
    """Read a split completely, once, as a stream.

    Args:
        source: from `open_split(data, split)`.
        data: cleaning, columns, `on_bad_row`; of a held-out share only the rows of `split` are counted.
        roles: of the task.
        split: for the messages; the number of lanes is checked for "train".
        of: what the fingerprint is of, see `fingerprints.fingerprint`.

    Raises:
        DataError: a bad row where `data.on_bad_row` is fail, more of them than `data.max_bad_fraction`, no usable row,
            or more lanes than rows.
    """
    if isinstance(source, MixedSource):
        return _survey_mix(source, roles, split, of)
    counts = Survey(split)
    if split == "train" and data.order == "shuffled":
        by_file = data.lanes > 1 and deals_whole_shards(source, data)
        counts.parts = LabelParts(data.block_rows * (1 if by_file else data.lanes), by_file)
    reading = _read(source, data, roles, counts)
    reading.check([shard.name for shard in source.shards])
    counts.fingerprint = fingerprint(source, of)
    return counts


def _read(source: Source, data: DataConfig, roles: Roles, counts: Survey) -> _Reading:
    reading = _Reading(data, roles, counts)
    for index, shard in enumerate(source.shards):
        before = counts.read
        reading.shard(source.stream(index), shard)
        counts.shard_rows.append(counts.read - before)
    return reading


def _survey_mix(
    source: MixedSource, roles: Roles, split: Split, of: str | None = None, check: Check | None = None
) -> Survey:
    """Return the sum of the surveys of all corpora of `data.mix`. A share for validation may have no row of some.

    Args:
        source, roles, split, of: as for `survey`.
        check: sample or off for a part of each corpus, None for all rows.
    """
    corpora = dict[str, Survey]()
    for name, section, part in zip(source.names, source.sections, source.parts, strict=True):
        counts, data = Survey(split), section.model_copy(update={"check": check or "full"})
        with of_corpus(name):
            if split == "train" and check is None:
                counts = survey(part, data, roles, split, of)
            elif check is None:
                _read(part, data, roles, counts)
            elif split == "train":
                counts = survey_part(part, data, roles, split, of)[0]
            else:
                _read_part(part, data, roles, counts)
        if counts.total is not None and isinstance(data.validation, float):
            counts.total = round(counts.total * (1 - data.validation if split == "train" else data.validation))
        corpora[name] = counts
    counts = Survey(split, corpora=corpora)
    for found in corpora.values():
        counts.add(found)
    known = [found.rows if found.complete else found.total for found in corpora.values()]
    counts.total = None if counts.complete or None in known else sum(filter(None, known))
    if split != "train" and (check != "off" or counts.total is not None):
        _Reading(source.sections[0], roles, counts).check([shard.name for shard in source.shards], counts.total)
    counts.fingerprint = fingerprint(source, of)
    return counts


def survey_part(
    source: Source, data: DataConfig, roles: Roles, split: Split, of: str | None = None
) -> tuple[Survey, int | None]:
    """Read the first rows of every file of a split. Return counts of them, and the rows of the split.

    With `data.check: off` only the metadata of files are read. Where files say how many rows they have, the number
    includes bad rows and those of a held-out share. It is None where they do not.

    Arguments and errors as `survey`. Few bad rows are no error here, where `data.on_bad_row` allows them.
    """
    if isinstance(source, MixedSource):
        counts = _survey_mix(source, roles, split, of, data.check)
    else:
        counts = Survey(split)
        reading = _read_part(source, data, roles, counts)
        if data.check != "off" or counts.total is not None:
            reading.check([shard.name for shard in source.shards], counts.total)
        counts.fingerprint = fingerprint(source, of)
    return counts, counts.rows if counts.complete else counts.total


def _read_part(source: Source, data: DataConfig, roles: Roles, counts: Survey) -> _Reading:
    reading, numbers = _Reading(data, roles, counts), list[int | None]()
    root = own_root(data)
    prepared = None if root is None else root.prepared()
    rows = 0 if data.check == "off" else FILE_ROWS
    found = heads(source, rows, least=PART_ROWS, count=prepared is None)
    for shard, head in zip(source.shards, found, strict=True):
        before = counts.read
        reading.shard(head, shard)
        counts.shard_rows.append(counts.read - before)
        counts.complete = counts.complete and head.complete
        numbers.append(head.rows)
    if prepared is not None:
        counts.total = int(prepared["splits"][counts.split]["rows"])
    elif None not in numbers:
        counts.total = sum(filter(None, numbers))
    return reading


def too_many(bad: int, rows: int, data: DataConfig, *, complete: bool) -> bool:
    """Return whether more than `data.max_bad_fraction` of rows are bad.

    Args:
        bad: lines that bad rows take.
        rows: usable rows, as many as have been read.
        data: the section of the recipe.
        complete: whether these are all rows.
    """
    return bad > data.max_bad_fraction * (rows + bad if complete else max(FEW, rows + bad))


def is_counted(row: Row, data: DataConfig, split: str) -> bool:
    """Return whether a bad row counts for a split. A held-out share is decided by its raw values."""
    values = {str(name): repr(value) for name, value in row.values.items()} or {"id": repr(row.id)}
    return belongs(values, data, split)


class _Reading:
    """Reads the shards of a split and counts them in a `Survey`."""

    def __init__(self, data: DataConfig, roles: Roles, counts: Survey) -> None:
        self._data, self._roles, self._counts = data, roles, counts
        self._clean = cleaner(data.cleaning)
        self._mistakes: list[FileMistake] = []

    def shard(self, stream: ShardStream | Head, shard: Shard) -> None:
        """Read one file, or its first rows.

        Raises:
            DataError: it has a bad row, and `data.on_bad_row` is fail.
        """
        fail, good, read = self._data.on_bad_row == "fail", 0, 0
        bad = BadRows()
        mistake: FileMistake | None = None
        first_bad, before = 0, stream.offsets
        for row in stream:
            read += 1
            values = clean_row(row, self._roles, self._data.columns, self._clean)
            if isinstance(values, BadRow):
                if not good and not first_bad:
                    mistake = FileMistake(self._counts.split, shard, values)
                first_bad = first_bad or read
                if mistake is not None and not mistake.add(row, values, read):
                    mistake = None
                bad.add(values, (before, stream.offsets))
                if not fail and is_counted(row, self._data, self._counts.split):
                    count_reason(self._counts.bad, values)
                    self._counts.lost += row.lines - 1
            else:
                good, mistake = good + 1, None
                self._count(values)
            before = stream.offsets
            enough = bad.full if good else read >= ALL_BAD
            if fail and first_bad and (enough or read >= first_bad + MORE):
                break
        if self._counts.parts is not None:
            self._counts.parts.end_file()
        self._counts.read += read
        self._counts.good += good
        if mistake is not None:
            self._mistakes.append(mistake)
        if fail and first_bad:
            self._refuse(shard, bad, stream.form)
        if room := EXAMPLES - len(self._counts.examples):
            self._counts.examples += bad.sentences(shard, stream.form, room)

    def _count(self, values: Mapping[str, Any]) -> None:
        if not belongs(values, self._data, self._counts.split):
            return
        self._counts.rows += 1
        inputs, labels = [], list[str]()
        for name, role in self._roles.items():
            if name not in values:
                if self._counts.split == "train":
                    self._counts.without[name] += 1
                continue
            labels += role.counted(values[name])
            if (number := role.measured(values[name])) is not None:
                self._counts.numbers.setdefault(name, Numbers()).add(number)
            if not role.target:
                inputs.append(values[name] if isinstance(values[name], str) else json.dumps(values[name]))
        self._counts.labels.update(labels)
        if self._counts.parts is not None:
            self._counts.parts.add(labels)
        digest = hashlib.blake2b("\0".join(inputs).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._counts.inputs.append(int.from_bytes(digest, "little"))

    def _refuse(self, shard: Shard, bad: BadRows, form: Form) -> NoReturn:
        if self._mistakes:
            raise DataError(self._mistakes[0].message(self._data, self._roles))
        mistakes = bad.sentences(shard, form)
        fix = (
            f"Fix the row{'s' * (bad.total > 1)}, or set data.on_bad_row=skip to leave out up to "
            f"data.max_bad_fraction={self._data.max_bad_fraction:g} of all rows"
        )
        if len(mistakes) == 1:
            raise DataError(f"data.{self._counts.split}: {mistakes[0]}. {fix}")
        listed = "".join(f"\n  {mistake}" for mistake in mistakes)
        count = f"the first {bad.total:,} bad rows" if bad.full else f"{bad.total:,} bad rows"
        raise DataError(f"data.{self._counts.split}: {count} of {shard.name}:{listed}\n{fix}")

    def check(self, names: Sequence[str], total: int | None = None) -> None:
        """Refuse a split with too many bad rows, without a usable row, or with fewer rows than lanes.

        Args:
            names: of the files.
            total: rows of the split where not all have been read. None = unknown.
        """
        counts, data = self._counts, self._data
        bad = counts.bad.total()
        bad_lines = bad + counts.lost
        if too_many(bad_lines, counts.rows, data, complete=counts.complete):
            if self._mistakes:
                raise DataError(self._mistakes[0].message(data, self._roles))
            lines = f" of the lines, {bad_lines} in number" if counts.lost else ""
            reasons = "".join(f"\n  {count} x {reason}" for reason, count in counts.bad.most_common(LISTED))
            quoted = "".join(f"\n  {sentence}" for sentence in counts.examples)
            raise DataError(
                f"data.{counts.split}: {bad} of {counts.rows + bad} rows are bad "
                f"({bad_lines / (counts.rows + bad_lines):.2%}{lines}), more than "
                f"data.max_bad_fraction={data.max_bad_fraction:g}:{reasons}\nThe first ones:{quoted}"
            )
        if not (counts.rows if counts.complete else counts.good or (total and not counts.read)):
            share = f" in its part of data.validation={data.validation}" if isinstance(data.validation, float) else ""
            files = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            raise DataError(
                f"data.{counts.split} has no usable row{share}: {counts.read} rows were read from {files} below "
                f"data.root={data.root!r}; set it to files with rows"
            )
        for role, rows in counts.without.items():
            raise DataError(
                f"data.train: {rows:,} of {counts.rows:,} rows have no column {data.columns.get(role, role)!r}, which "
                f"data.columns names for {role!r}; add it, or leave {role!r} out of data.columns"
            )
        known = counts.rows if counts.complete else total
        if counts.split == "train" and known is not None and data.lanes > known:
            raise DataError(
                f"data.lanes={data.lanes} is more than the {known} rows of data.train: each lane needs a row; "
                f"set data.lanes to {known} or less"
            )
