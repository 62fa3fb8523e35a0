"""The parts of `rankzero prepare` that several processes or jobs can do, each repeated without harm.

    read    clean the rows of a range of a file, count them, and write them to chunks
    deal    sort the rows of a chunk by the shard to which they are dealt
    write   tokenize the rows of a shard in their random order, and write it

Training the tokenizer and looking for unknown tokens are parts, too. The chunks are in the folder `rows` of the
workspace. Every file is written to a temporary one, flushed and renamed, so a part whose output exists is done. Neither
ranges nor chunks change what is written in the end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import key, permutation
from trainer.data.discovery import CORPORA, corpora
from trainer.data.prepare_sample import Sampled, copy_sample
from trainer.data.prepare_spans import CHUNK_ROWS, Span
from trainer.data.prepare_tally import Tally
from trainer.data.roles import Roles
from trainer.data.sources import TOKENS, MixedSource, Source, Split, belongs, open_splits
from trainer.data.survey import is_counted
from trainer.data.target_tokenizer import save_tokenizer
from trainer.data.tokenization import MixedTexts, TrainingTexts, load_tokenizer, train_tokenizers, training_texts
from trainer.files import read_json, replacing, write_json
from trainer.stages import published

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

BUCKET_ROWS = 100_000  # rows that are shuffled in memory at once
WRITE_ROWS = 1000  # rows of a Parquet row group: a resumed reader reads at most this many too many
ROWS, TOKENIZER = "rows", "tokenizer"  # folders of the workspace
Values = dict[str, Any]
Encode = Callable[[list[Values]], list[dict[str, list[int]]]]
Encoder = Callable[["PreTrainedTokenizerFast"], Encode]
Check = Callable[["Recipe", "PreTrainedTokenizerFast", Split], None]


@dataclass
class Workspace:
    """The folder in which a corpus is prepared.

    Args:
        folder: it becomes the prepared corpus.
        recipe: of this corpus alone.
        encoder: makes the task's `encode` from a tokenizer.
        check: refuses a split with too many unknown tokens, by its first rows.
        tokenizer: its folder.
        sources: the splits that are written.
    """

    folder: Path
    recipe: Recipe
    roles: Roles
    encoder: Encoder
    check: Check | None
    tokenizer: Path
    sources: dict[Split, Source]

    def __post_init__(self) -> None:
        self._encode: Encode | None = None

    def chunk(self, split: str, shard: int, first: int) -> Path:
        """Return the path of a chunk's rows. With the suffix .json its counts, with .dealt and .index dealt rows."""
        return self.folder / ROWS / f"{split}-{shard:05d}-{first:012d}.jsonl"

    def chunks(self, split: Split) -> Iterator[dict[str, Any]]:
        """Yield the counts of a split's chunks in order, up to the first that is missing (then None)."""
        for shard in range(len(self.sources[split].shards)):
            first: int | None = 0
            while first is not None:
                counts = read_json(self.chunk(split, shard, first).with_suffix(".json"))
                yield counts
                if counts is None:
                    return
                first = None if counts["ended"] else counts["following"]["row"]

    # -- read ------------------------------------------------------------------------------------------------------

    def read(self, span: Span) -> dict[str, int]:
        """Clean the rows of a span. Write them and their counts to chunks. Return the rows read and the bad ones."""
        source = self.sources[span.split]
        stream, state, left = None, span.state, span.rows
        total = {"rows": 0, "bad": 0, "done": 0}
        while left is None or left > 0:
            first = state["row"] if state else 0
            path = self.chunk(span.split, span.shard, first).with_suffix(".json")
            counts = read_json(path)
            if counts is None:
                stream = stream or source.stream(span.shard, state)
                counts = self._read_chunk(stream, source, span, min(CHUNK_ROWS, left or CHUNK_ROWS))
                write_json(path, counts)
            else:
                stream, total["done"] = None, total["done"] + counts["read"]
            state = counts["following"]
            total["rows"] += counts["read"]
            total["bad"] += sum(mistake["rows"] for mistake in counts["mistakes"])
            if counts["ended"]:
                break
            left = None if left is None else left - counts["read"]
        return total

    def _read_chunk(self, stream: Any, source: Source, span: Span, most: int) -> dict[str, Any]:
        data, first = self.recipe.data, stream.state()["row"]
        clean, tally = cleaner(data.cleaning), Tally(self.roles, span.split)
        read, before = 0, stream.offsets
        from_train = span.split == "train" or (span.split == "validation" and isinstance(data.validation, float))
        kept = [name for name, role in self.roles.items() if from_train or not role.optional]
        with replacing(self.chunk(span.split, span.shard, first)) as file:
            for row in islice(stream, most):
                read += 1
                values = clean_row(row, self.roles, data.columns, clean)
                if isinstance(values, BadRow):
                    counted = is_counted(row, data, span.split)
                    tally.bad(values, (before, stream.offsets), counted, row.lines - 1)
                elif belongs(values, data, span.split):
                    tally.good(values)
                    written = {"id": source.name_of(row.id), **{name: values[name] for name in kept if name in values}}
                    file.write((json.dumps(written, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
                before = stream.offsets
        return {"first": first, "read": read, "ended": read < most, "following": stream.state(), **tally.report()}

    # -- deal ------------------------------------------------------------------------------------------------------

    def deal(self, shard: int, first: int, number: int, buckets: int) -> int:
        """Sort the rows of a chunk of train by the shard they are dealt to, each with its bucket there.

        Of each group of `data.lanes` rows one goes to each shard, in keyed order.

        Args:
            number: of the chunk's first usable row among those of train.
            buckets: of each shard.

        Returns:
            The number of rows.
        """
        path, count, seed = self.chunk("train", shard, first), self.recipe.data.lanes, self.recipe.seed
        of_shard: list[list[bytes]] = [[] for _ in range(count)]
        order = permutation(count, seed, "prepare", number // count)
        with path.open("rb") as file:
            for row, line in enumerate(file, start=number):
                group, place = divmod(row, count)
                if place == 0:
                    order = permutation(count, seed, "prepare", group)
                of_shard[int(order[place])].append(b"%d\t%b" % (key(seed, "bucket", row) % buckets, line))
        ends = [0]
        with replacing(path.with_suffix(".dealt")) as dealt:
            for lines in of_shard:
                dealt.writelines(lines)
                ends.append(dealt.tell())
        write_json(path.with_suffix(".index"), {"ends": ends})
        path.unlink()
        return sum(map(len, of_shard))

    # -- tokenizer -------------------------------------------------------------------------------------------------

    def texts(self, counts: Mapping[str, Any]) -> list[TrainingTexts]:
        """Return the texts that the tokenizer is trained on, one after the other. Empty if none is trained.

        Args:
            counts: of the training rows, see `training_texts`.
        """
        settings, data = self.recipe.tokenizer_training, self.recipe.data
        if settings is None:
            return []
        texts = training_texts(open_splits(data, self.roles)["train"], data, self.roles, settings.sample_rows, counts)
        return list(texts.parts) if isinstance(texts, MixedTexts) else [texts]

    def sample(self, shard: int, first: int, file: int, limit: int, rows: int) -> int:
        """Copy the rows of a chunk that the tokenizer is trained on, see `copy_sample`. Return 0 rows."""
        copy_sample(self.chunk("train", shard, first), self.sources["train"].shards[shard].name, file, limit, rows)
        return 0

    def make_tokenizer(self, counts: Mapping[str, Any], files: Sequence[Sequence[Path]] | None) -> int:
        """Train or load the tokenizer. Return 0 rows.

        Args:
            counts: as for `texts`.
            files: what `sample` has written of each of the texts. None: the texts are read from the corpus.
        """
        settings = self.recipe.tokenizer_training
        if settings is None:
            tokenizer = load_tokenizer(str(self.recipe.tokenizer_name), self.recipe.tokenizer_key)
        else:
            parts = self.texts(counts) if files is None else [Sampled(paths, self.roles) for paths in files]
            tokenizer = train_tokenizers(MixedTexts(parts), settings, self.recipe.data.max_length)
        with published(self.tokenizer) as folder:
            save_tokenizer(tokenizer, folder)
        return 0

    def check_tokens(self, split: Split) -> int:
        """Refuse a split with too many unknown tokens. Return 0 rows.

        Raises:
            DataError: the tokenizer does not know the texts.
        """
        if self.check is not None:
            self.check(self.recipe, load_tokenizer(str(self.tokenizer)), split)
        return 0

    # -- write -----------------------------------------------------------------------------------------------------

    def encode(self) -> Encode:
        """Return the task's `encode` with the tokenizer of the workspace."""
        if self._encode is None:
            self._encode = self.encoder(load_tokenizer(str(self.tokenizer)))
        return self._encode

    def write(self, split: Split, name: str, shard: int | None, paths: Sequence[Path], buckets: int) -> int:
        """Write a shard: its rows of dealt chunks in random order, or with shard None the rows of chunks in order.

        Returns:
            The number of rows.
        """
        encode = self.encode()
        rows = _in_order(paths) if shard is None else self._shuffled(paths, shard, buckets)
        with replacing(self.folder / name) as file:
            return _write_rows(file, rows, self.roles, encode)

    def _shuffled(self, paths: Sequence[Path], shard: int, buckets: int) -> Iterator[Values]:
        """Yield the rows of a shard, bucket by bucket. Each bucket is permuted in memory."""
        made = self.folder / ROWS / f"buckets-{shard:05d}"
        shutil.rmtree(made, ignore_errors=True)  # of a killed attempt
        if buckets == 1:
            found: Iterable[list[bytes]] = [[line.partition(b"\t")[2] for line in _dealt(paths, shard)]]
        else:
            found = _buckets(made, _dealt(paths, shard), buckets)
        for bucket, lines in enumerate(found):
            for i in permutation(len(lines), self.recipe.seed, "order", shard, bucket):
                yield json.loads(lines[i].decode("utf-8", "surrogatepass"))
        shutil.rmtree(made, ignore_errors=True)


def workspaces(
    folder: Path, recipe: Recipe, roles: Roles, encoder: Encoder, check: Check | None = None
) -> dict[str, Workspace]:
    """Return the workspace of the recipe, by the name "". With `data.mix`, also those of its corpora by their names.

    Arguments as `Workspace`. Rows of the corpora are in their own workspaces only.
    """
    tokenizer, sources = folder / TOKENIZER, open_splits(recipe.data, roles)
    own = {split: source for split, source in sources.items() if not isinstance(source, MixedSource)}
    found = {"": Workspace(folder, recipe, roles, encoder, check, tokenizer, own)}
    for name, data in corpora(recipe.data).items():
        alone = recipe.model_copy(update={"data": data})
        parts = open_splits(data, roles)
        found[name] = replace(found[""], folder=folder / CORPORA / name, recipe=alone, sources=parts)
    return found


def _in_order(paths: Sequence[Path]) -> Iterator[Values]:
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line.decode("utf-8", "surrogatepass"))


def _dealt(paths: Sequence[Path], shard: int) -> Iterator[bytes]:
    """Yield the lines of a shard in dealt chunks, each with its bucket."""
    for path in paths:
        begin, end = read_json(path.with_suffix(".index"))["ends"][shard : shard + 2]
        with path.with_suffix(".dealt").open("rb") as file:
            file.seek(begin)
            yield from file.read(end - begin).splitlines(keepends=True)


def _buckets(folder: Path, lines: Iterator[bytes], buckets: int) -> Iterator[list[bytes]]:
    """Yield the lines of each bucket. They go through files, of which one is open at a time."""
    folder.mkdir()
    while window := list(islice(lines, BUCKET_ROWS)):
        of_bucket: dict[bytes, list[bytes]] = {}
        for line in window:
            bucket, _, row = line.partition(b"\t")
            of_bucket.setdefault(bucket, []).append(row)
        for bucket, rows in of_bucket.items():
            with (folder / bucket.decode()).open("ab") as file:
                file.writelines(rows)
    for number in range(buckets):
        path = folder / str(number)
        if path.exists():
            with path.open("rb") as file:
                yield file.readlines()
            path.unlink()
        else:  # no row was dealt to it
            yield []


def _write_rows(file: Any, rows: Iterator[Values], roles: Roles, encode: Encode) -> int:
    """Write a Parquet file of id, values and token ids. Return the number of rows."""
    types = {"id": pa.string()}
    for name, role in roles.items():
        item = pa.type_for_alias(role.stored)
        types[name] = pa.list_(item) if role.is_list else item
    written = 0
    with ExitStack() as stack:
        writer: Any = None
        while window := list(islice(rows, WRITE_ROWS)):
            examples = encode([{name: value for name, value in row.items() if name != "id"} for row in window])
            columns = {name: pa.array([row[name] for row in window], types[name]) for name in window[0]}
            for name in examples[0]:
                columns[TOKENS + name] = _array([e[name] for e in examples])
            table = pa.table(columns)
            writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)
            written += len(window)
    return written


def _array(rows: Sequence[Sequence[float]]) -> Any:
    """Return lists of ids or of numbers as an Arrow array."""
    floats = any(isinstance(value, float) for row in rows for value in row[:1])
    return pa.array(rows, pa.list_(pa.float64() if floats else pa.int32()))
