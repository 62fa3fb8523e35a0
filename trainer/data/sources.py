"""Rows of a split, streamed from the files below any fsspec root.

A shard is one file, or one set of parallel text files. Its rows are numbered from 0. `Source.stream` starts at any row
from a small JSON state. The state holds a byte offset where the format has lines, so that a resumed stream seeks once.
The lanes deal shards to readers, so a stream never divides itself among loader processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from trainer.data import formats
from trainer.data.conll import conll_records
from trainer.data.csv_files import csv_records
from trainer.data.discovery import Shard, corpora, split_shards
from trainer.data.embedded import generated_rows
from trainer.data.formats import Parsed
from trainer.data.records import array_records, json_records, text_records
from trainer.data.roles import Roles, Text
from trainer.data.sniffing import Form, Reading, sniff
from trainer.data.tables import table_batches
from trainer.errors import DataError, RankzeroError, UsageError
from trainer.recipe.sections import DataConfig, Patterns

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OUR_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)  # never blamed on a file
_OF_ENTRY = re.compile(r"\bdata\.(train|root|columns)\b")
TOKENS = "tokens."  # prefix of the columns of a prepared corpus that hold token ids


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file has it.

    Attributes:
        id: (shard, row), both from 0; a header or a blank line of JSON or CSV is not a row.
        values: column -> value; for text files role -> line; empty when `error` is set.
        error: why the row itself cannot be read.
        example: token ids as the task encodes them, in a corpus written by `prepare`. Then `values` has clean values
            by role, which are used as they are.
        lines: lines of the file that a row takes which cannot be read: a stray quotation mark may take many.
    """

    id: tuple[int, int]
    values: Mapping[str, object]
    error: str | None = None
    example: dict[str, list[int]] | None = None
    lines: int = 1


class Source:
    """One split of a corpus: its shards in sorted order.

    Args:
        shards, reading: the files in this order, and how they are read.
        first: the number of the first shard in row ids.
    """

    def __init__(self, shards: Sequence[Shard], reading: Reading | None = None, first: int = 0):
        self.shards: Sequence[Shard] = shards
        self.reading = reading or Reading()
        self.first = first
        self._forms: dict[int, tuple[Form, ...]] = {}

    def stream(self, shard: int, state: dict[str, Any] | None = None) -> ShardStream:
        """Return the rows of one shard, from the first one or from a state of an earlier stream."""
        return ShardStream(self.shards[shard], self.first + shard, self.forms(shard), self.reading, state)

    def forms(self, shard: int) -> tuple[Form, ...]:
        """Return the form of each file of a shard, determined once from its first bytes.

        Raises:
            DataError: a file is empty, or something else than its name says.
        """
        if shard not in self._forms:
            forms, about = [], self.shards[shard]
            names = about.name.split("+")  # which may be in a name, too
            names = names if len(names) == len(about.urls) else [about.name] * len(about.urls)
            for url, name in zip(about.urls, names, strict=True):
                try:
                    generated = about.format == "embedded"
                    with formats.first_bytes():
                        forms.append(Form() if generated else sniff(url, name, about.format, self.reading))
                except (RankzeroError, *OUR_MISTAKES):
                    raise
                except Exception as error:  # a store or a decompressor may raise anything about this file
                    raise damaged(about, 0, error, name) from error
            self._forms[shard] = tuple(forms)
        return self._forms[shard]

    def name_of(self, row_id: tuple[int, int]) -> str:
        """Return a row id as reports show it: "train.jsonl:123"."""
        return f"{self.shards[row_id[0] - self.first].name}:{row_id[1]}"

    def section(self, row: Row, data: DataConfig) -> DataConfig:
        """Return the `data` section for a row. Corpora of a mixture have their own columns."""
        return data

    def __iter__(self) -> Iterator[Row]:
        for shard in range(len(self.shards)):
            yield from self.stream(shard)


class MixedSource(Source):
    """The training rows of `data.mix`: the shards of all corpora, one corpus after the other.

    Attributes:
        names: of the corpora. Those of shards begin with them: "de/train.jsonl".
        parts, sections: each corpus alone, with the same row ids, and `data` as it is for it.
    """

    def __init__(self, sections: Mapping[str, DataConfig], parts: Sequence[Source]):
        super().__init__([shard for part in parts for shard in part.shards])
        self.names, self.sections, self.parts = list(sections), list(sections.values()), parts
        self._ends = list(accumulate(len(part.shards) for part in parts))

    def corpus_of(self, shard: int) -> int:
        """Return the number of the corpus of a shard."""
        return bisect_right(self._ends, shard)

    def section(self, row: Row, data: DataConfig) -> DataConfig:
        return self.sections[self.corpus_of(row.id[0])]

    def stream(self, shard: int, state: dict[str, Any] | None = None) -> ShardStream:
        return (part := self.parts[self.corpus_of(shard)]).stream(shard - part.first, state)

    def forms(self, shard: int) -> tuple[Form, ...]:
        return (part := self.parts[self.corpus_of(shard)]).forms(shard - part.first)


class ShardStream:
    """The rows of one shard in order.

    Attributes:
        form: of the first file.
        offsets: the byte offsets after the last row, one per file; empty at the start and for formats without lines.

    Raises:
        DataError: the file is damaged (a cut archive, a broken parquet footer) or its store cannot be read.
    """

    def __init__(
        self,
        shard: Shard,
        index: int,
        forms: tuple[Form, ...],
        reading: Reading,
        state: dict[str, Any] | None = None,
    ):
        self._shard, self._index, self.form = shard, index, forms[0]
        self._row: int = state["row"] if state else 0
        self.offsets: tuple[int, ...] = tuple(state["offsets"]) if state else ()
        self._records = _records(shard, forms, reading, self._row, self.offsets)

    def state(self) -> dict[str, Any]:
        """Return the position after the last row yielded."""
        return {"row": self._row, "offsets": list(self.offsets)}

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Row:
        try:
            (values, problem, lines), self.offsets = next(self._records)
        except (StopIteration, RankzeroError, *OUR_MISTAKES):
            raise
        except Exception as error:  # a store or a decompressor may raise anything about this file
            raise damaged(self._shard, self._row, error) from error
        row_id = (self._index, self._row)
        self._row += 1
        if self._shard.format != "prepared":
            return Row(row_id, values, problem, lines=lines)
        tokens: Any = {name.removeprefix(TOKENS): ids for name, ids in values.items() if name.startswith(TOKENS)}
        clean = {name: value for name, value in values.items() if not name.startswith(TOKENS) and name != "id"}
        return Row(row_id, clean, None, tokens)


def open_split(data: DataConfig, split: Split, roles: Roles | None = None) -> Source | None:
    """Return the shards of a split, or None if the recipe has no such split.

    A share of train for `validation` gives the train source. `belongs` selects the rows of each split.

    Args:
        data: the section of the recipe.
        split: its name.
        roles: of the task: no other column is read from files that store columns. None for all.

    Raises:
        DataError: no file matches, an unknown format, text files that do not pair up, an unreachable root.
    """
    patterns: Patterns | float | None = getattr(data, split)
    if isinstance(patterns, float):
        patterns = data.train
    if patterns is None:
        return None
    if data.mix and patterns is data.train:
        return _open_mix(data, roles, split)
    return Source(_shards(split_shards(data, patterns, split), roles), Reading.of(data, roles))


def _shards(shards: list[Shard], roles: Roles | None) -> list[Shard]:
    if roles and not any(isinstance(role, Text) for role in roles.values()):  # a text file has lists, such as tokens
        shards = [replace(shard, format="conll", roles=()) if shard.format == "text" else shard for shard in shards]
    return shards


def _open_mix(data: DataConfig, roles: Roles | None, split: Split) -> MixedSource:
    """Return the rows of all corpora of `data.mix`. `split`: train, or validation for a share of it.

    Raises:
        DataError: as `open_split`; the message names each corpus that cannot be opened.
    """
    sections = corpora(data)
    parts, problems, first = list[Source](), list[str](), 0
    for name, section in sections.items():
        try:
            with of_corpus(name):
                shards = _shards(split_shards(section, section.train, "train", prepared_split=split), roles)
        except DataError as error:
            problems.append(str(error))
            continue
        named = [replace(shard, name=f"{name}/{shard.name}") for shard in shards]
        parts.append(Source(named, Reading.of(section, roles), first))
        first += len(shards)
    if problems:
        raise DataError("\n".join(problems))
    return MixedSource(sections, parts)


@contextmanager
def of_corpus(name: str) -> Iterator[None]:
    """Let messages about data name the entry of `data.mix`: "data.mix.de.train" in place of "data.train"."""
    try:
        yield
    except (DataError, UsageError) as error:
        raise type(error)(_OF_ENTRY.sub(rf"data.mix.{name}.\1", str(error))) from error


def open_splits(data: DataConfig, roles: Roles | None = None) -> dict[Split, Source]:
    """Return the shards of every split of the recipe. Wrong paths are found before any row is read.

    Raises:
        DataError: as `open_split`; the message names each split that cannot be opened.
    """
    found: dict[Split, Source] = {}
    problems = []
    for split in SPLITS:
        try:
            if (source := open_split(data, split, roles)) is not None:
                found[split] = source
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))  # a root that cannot be read is one problem
    return found


def belongs(row: Mapping[str, object], data: DataConfig, split: str) -> bool:
    """Return whether a row of the files of a split belongs to it. Only a share of train for `validation` moves rows."""
    if not isinstance(data.validation, float) or split == "test":
        return True
    return held_out(row, data.validation) == (split == "validation")


def held_out(row: Mapping[str, object], fraction: float) -> bool:
    """Return whether a clean row is in the share of train that is held out for validation.

    It depends on the content of the row alone: the row stays on its side when files are renamed or added, and equal
    rows are on the same side.
    """
    content = json.dumps(sorted(row.items()), ensure_ascii=False).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _records(
    shard: Shard, forms: tuple[Form, ...], reading: Reading, row: int, offsets: tuple[int, ...]
) -> Iterator[tuple[Parsed, tuple[int, ...]]]:
    """Yield the records of a shard from a position, each with the offsets that follow it."""
    url, form, offset = shard.urls[0], forms[0], offsets[0] if offsets else 0
    if shard.format in ("parquet", "arrow", "prepared"):
        for batch in table_batches(url, shard.format, row, reading):
            yield from ((parsed, ()) for parsed in batch)
    elif shard.format == "embedded":
        yield from ((Parsed(values), ()) for values in generated_rows(url, row))
    elif shard.format == "jsonl":
        yield from (array_records if form.array else json_records)(url, offset, form)
    elif shard.format == "text":
        yield from text_records(shard.urls, shard.roles, offsets, forms)
    elif shard.format == "conll":
        yield from conll_records(url, offset, form, reading)
    else:
        yield from csv_records(url, offset, form, reading)


def damaged(shard: Shard, row: int, error: Exception, name: str | None = None) -> DataError:
    """Return the error of a file that cannot be read after so many rows."""
    reason = str(error) if isinstance(error, formats.BadFile) else f"{type(error).__name__}: {error}"
    return DataError(f"{name or shard.name} cannot be read (after {row} rows): {reason}")
