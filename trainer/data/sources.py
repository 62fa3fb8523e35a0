"""Where rows come from: the files of one split below any fsspec root, each streamed by `datasets` as a shard.

A shard is one file (or one set of parallel text files); its rows are numbered from 0. `Source.stream` starts at any
row from a small JSON-able state, which holds a byte offset where the format has lines: going on costs one seek.
Shards are dealt to readers by the lanes, so a stream must never divide itself: it is read through
`IterableDataset.iter`, which, unlike `__iter__`, does not look at the DataLoader worker that it runs in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

from trainer.data import formats
from trainer.data.csv_files import csv_records
from trainer.data.discovery import (
    EMBEDDED,
    Root,
    Shard,
    embedded_shards,
    file_shards,
    parallel_shards,
    prepared_shards,
    protocols,
)
from trainer.data.json_arrays import array_records
from trainer.data.sniffing import Form, Reading, sniff
from trainer.data.tables import table_batches
from trainer.errors import DataError
from trainer.recipe.sections import DataConfig, Patterns

if TYPE_CHECKING:
    from datasets import IterableDataset

Split = Literal["train", "validation", "test"]
# Above this, the content of a remote corpus is not downloaded for its fingerprint: the store's own checksums stand in.
FINGERPRINT_BYTES = 2_000_000_000
OUR_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)  # never blamed on a file
ROWS_PER_PULL = 64  # rows taken from `datasets` at once; 3 times as fast as one by one, and still a small delay


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        id: (shard, row), both from 0; a header or a blank line of JSON or CSV is no row.
        values: column -> value; for text files role -> line; empty when `error` is set.
        error: why the row itself cannot be read.
        example: token ids as the task encodes them, in a corpus written by `prepare`; `values` then holds cleaned
            texts by role, to be taken as they are.
        lines: lines of the file that a row takes which cannot be read: a stray quotation mark may take many.
    """

    id: tuple[int, int]
    values: Mapping[str, object]
    error: str | None = None
    example: dict[str, list[int]] | None = None
    lines: int = 1


class Source:
    """One split of a corpus: its shards in sorted order."""

    def __init__(self, shards: Sequence[Shard], reading: Reading | None = None):
        self.shards: Sequence[Shard] = shards
        self._reading = reading or Reading()
        self._forms: dict[int, tuple[Form, ...]] = {}

    def stream(self, shard: int, state: dict[str, Any] | None = None) -> ShardStream:
        """The rows of one shard, from its first one or from where `state` was taken."""
        return ShardStream(self.shards[shard], shard, self.forms(shard), self._reading, state)

    def forms(self, shard: int) -> tuple[Form, ...]:
        """The form of each file of a shard, found once from its first bytes.

        Raises:
            DataError: a file is empty, or something else than its name promises.
        """
        if shard not in self._forms:
            found, about = [], self.shards[shard]
            for url, name in zip(about.urls, about.name.split("+") if about.roles else (about.name,), strict=False):
                try:
                    generated = about.format == "embedded"
                    found.append(Form() if generated else sniff(url, name, about.format, self._reading))
                except (DataError, *OUR_MISTAKES):
                    raise
                except Exception as error:  # whatever a store or a decompressor raises: it is about this file
                    raise _damaged(about, 0, error, name) from error
            self._forms[shard] = tuple(found)
        return self._forms[shard]

    def name_of(self, row_id: tuple[int, int]) -> str:
        """A row id as people read it: "train.jsonl:123"."""
        return f"{self.shards[row_id[0]].name}:{row_id[1]}"

    def __iter__(self) -> Iterator[Row]:
        for shard in range(len(self.shards)):
            yield from self.stream(shard)


class ShardStream:
    """The rows of one shard in order.

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
        self._offsets: tuple[int, ...] = tuple(state["offsets"]) if state else ()
        self._records = _records(shard, forms, reading, self._row, self._offsets)

    def state(self) -> dict[str, Any]:
        """The position after the last row yielded."""
        return {"row": self._row, "offsets": list(self._offsets)}

    @property
    def offsets(self) -> tuple[int, ...]:
        """The byte offsets after the last row yielded, one per file; empty at the start and for formats without."""
        return self._offsets

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Row:
        try:
            (values, problem, *lines), offsets = next(self._records)
        except (StopIteration, DataError, *OUR_MISTAKES):
            raise
        except Exception as error:  # whatever a store or a decompressor raises: it is about this file
            raise _damaged(self._shard, self._row, error) from error
        self._offsets = offsets
        row_id = (self._index, self._row)
        self._row += 1
        if self._shard.format == "prepared":
            return prepared_row(row_id, values)
        return Row(row_id, values, problem, lines=max(1, *lines) if lines else 1)


TOKENS = "tokens."  # prefix of the columns of a prepared corpus that hold token ids


def prepared_row(row_id: tuple[int, int], columns: Mapping[str, Any]) -> Row:
    """A row of a prepared corpus from its columns."""
    example = {name.removeprefix(TOKENS): value for name, value in columns.items() if name.startswith(TOKENS)}
    texts = {name: value for name, value in columns.items() if not name.startswith(TOKENS) and name != "id"}
    return Row(row_id, texts, None, example)


def open_split(data: DataConfig, split: Split, roles: Iterable[str] | None = None) -> Source | None:
    """The shards of a split, or None when the recipe gives no such split.

    A share of train for `validation` gives the train source: the caller keeps the rows that `held_out` picks. A root
    written by `prepare` gives its own shards of the split, whatever the patterns.

    Args:
        data: the section of the recipe.
        split: its name.
        roles: those of the task: no other column is read from files that store columns. None for all.

    Raises:
        DataError: no file matches, an unknown format, text files that do not pair up, an unreachable root.
    """
    patterns: Patterns | float | None = getattr(data, split)
    if isinstance(patterns, float):
        patterns = data.train
    if patterns is None:
        return None
    if data.root.startswith(EMBEDDED):
        return Source(embedded_shards(data.root, patterns, split))
    root, reading = Root(data.root), Reading.of(data, None if roles is None else list(roles))
    if (prepared := root.prepared()) is not None:
        return Source(prepared_shards(root, prepared, data, split))
    if isinstance(patterns, dict):
        return Source(parallel_shards(root, patterns, split), reading)
    return Source(file_shards(root, patterns, split), reading)


def held_out(row: Mapping[str, str], fraction: float) -> bool:
    """Whether a cleaned row belongs to the share of train that is held out for validation.

    Decided by the row's content alone, so that it does not move when files are renamed or added, and equal rows are
    always on the same side.
    """
    content = json.dumps(sorted(row.items()), ensure_ascii=False).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def fingerprint(source: Source) -> str:
    """SHA-256 over names, sizes and content of all shards: the same files under another root give the same one.

    The content of a remote corpus of more than FINGERPRINT_BYTES is taken from its store's checksums instead.
    """
    digest = hashlib.sha256()
    whole = sum(shard.size or 0 for shard in source.shards) <= FINGERPRINT_BYTES
    for shard in source.shards:
        digest.update(json.dumps([shard.name, shard.size, shard.roles]).encode())
        try:
            for url in shard.urls:
                _digest_content(shard, url, whole, digest)
        except Exception as error:  # whatever a store raises
            raise _damaged(shard, 0, error) from error
    return digest.hexdigest()


def _digest_content(shard: Shard, url: str, whole: bool, digest: Any) -> None:
    if shard.format == "embedded":
        for (values, _), _ in _records(shard, (), Reading(), 0, ()):
            digest.update(json.dumps(values, sort_keys=True).encode())
        return
    system, path = formats.located(url)
    if whole or "file" in protocols(system):
        with formats.opened(url) as file:
            while chunk := file.read(formats.CHUNK_BYTES):
                digest.update(chunk)
    else:
        digest.update(str(system.checksum(path)).encode())


def _records(
    shard: Shard, forms: tuple[Form, ...], reading: Reading, row: int, offsets: tuple[int, ...]
) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Parsed records of a shard from a position on, each with the offsets that follow it."""
    url = shard.urls[0]
    if shard.format in ("parquet", "arrow", "prepared"):
        for batch in table_batches(url, shard.format, row, reading.wanted):
            for parsed in batch:
                yield parsed, ()
    elif shard.format == "embedded":
        for raw, _ in _pulled(_embedded_records, {"url": url, "row": row}):
            yield (raw, None), ()
    elif shard.format == "jsonl":
        make = array_records if forms[0].array else formats.json_records
        for raw, at in _pulled(make, {"url": url, "offsets": offsets, "form": forms[0]}):
            yield formats.parse_json(raw), at
    elif shard.format == "text":
        for raw, at in _pulled(formats.text_records, {"urls": shard.urls, "offsets": offsets, "forms": forms}):
            yield formats.parse_text(raw, shard.roles), at
    else:
        yield from _pulled(csv_records, {"url": url, "offsets": offsets, "form": forms[0], "reading": reading})


def _pulled(generator: Any, arguments: dict[str, Any]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Streams a generator of {"raw", "at"} through `datasets`.

    Arguments are tuples, never lists: `datasets` takes a list for the shards of one data set.
    """
    from datasets.io.generator import GeneratorDatasetInputStream

    with formats.scratch_cache() as cache:  # `IterableDataset.from_generator` takes none
        stream: IterableDataset = GeneratorDatasetInputStream(
            generator, gen_kwargs=arguments, streaming=True, cache_dir=cache
        ).read()
    for batch in stream.iter(batch_size=ROWS_PER_PULL):
        yield from zip(batch["raw"], batch["at"], strict=True)


def _damaged(shard: Shard, row: int, error: Exception, name: str | None = None) -> DataError:
    what = str(error) if isinstance(error, formats.BadFile) else f"{type(error).__name__}: {error}"
    return DataError(f"{name or shard.name} cannot be read (after {row} rows): {what}")


def _embedded_records(url: str, row: int) -> Iterator[dict[str, Any]]:
    from trainer.corpora import embedded_rows

    where, _, query = url.removeprefix(EMBEDDED).partition("?")
    corpus, split = where.split("/")
    numbers = {key: int(value) for key, value in parse_qsl(query)}
    rows = partial(embedded_rows, corpus, split, numbers["rows"], numbers["seed"])
    for values in islice(rows(numbers["shard"], numbers["shards"]), row, None):
        yield {"raw": values, "at": ()}
