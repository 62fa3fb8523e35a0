"""The stages of `rankzero prepare`: what each of them still has to do, in which order, and by how many processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trainer.data.prepare_counts import merged, usable_chunks
from trainer.data.prepare_pool import Pool
from trainer.data.prepare_spans import spans
from trainer.data.prepare_work import BUCKET_ROWS, TOKENIZER, Workspace
from trainer.data.roles import Roles
from trainer.data.sources import Source, Split
from trainer.data.survey import survey
from trainer.data.target_tokenizer import save_tokenizer
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizers
from trainer.errors import UsageError
from trainer.files import read_json, write_json
from trainer.stages import published

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

log = logging.getLogger("rankzero")

PROGRESS_SECONDS = 10.0  # between two lines of progress
COUNTS = "counts.json"  # a file of the workspace: the counts of all splits and their chunks


class Preparation:
    """The stages of a preparation, in a workspace that no other recipe uses.

    Attributes:
        shards: the names of each split's shards, once they are written.
    """

    def __init__(
        self, workspace: Workspace, pool: Pool, marks: dict[Split, str], part: tuple[str, int, int] | None
    ) -> None:
        self._work, self._pool, self._marks, self._part = workspace, pool, marks, part
        self._recipe, self._folder = workspace.recipe, workspace.folder
        self.shards: dict[str, list[str]] = {}

    def run(self) -> dict[str, Any]:
        """Do what is missing. Return the counts of the splits, which stage read alone lacks."""
        if self._does("read") and read_json(self._folder / COUNTS) is None:
            self._read()
        if self._part is not None and self._part[0] == "read":
            return {}
        counts = self._counts()
        if self._does("deal"):
            self._deal(counts)
        if self._part is None or self._part[:2] == ("deal", 0):
            self._make_tokenizer(counts["splits"]["train"]["rows"])
        if self._does("write"):
            self.shards = self._write(counts)
        return dict(counts["splits"])

    def _does(self, stage: str) -> bool:
        return self._part is None or self._part[0] == stage

    def _own(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the tasks of this part."""
        number, count = self._part[1:] if self._part else (0, 1)
        return (task for i, task in enumerate(tasks) if i % count == number)

    # -- read ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        progress = Progress("read and checked")
        for split, source in self._work.sources.items():
            for found in self._pool.run("read", ((span,) for span in self._spans(split, source))):
                progress.add(found["rows"], found["done"])
                if found["bad"] and self._recipe.data.on_bad_row == "fail":
                    survey(source, self._recipe.data, self._work.roles, split)  # raises the error with all it knows
        progress.end()

    def _spans(self, split: Split, source: Source) -> Iterator[Any]:
        """Yield the spans of this part: whole files if there are enough for all parts, which are not read twice."""
        shards = range(len(source.shards))
        if self._part is not None and len(shards) >= self._part[2]:
            return (span for shard in self._own(shards) for span in spans(source, split, shard))
        return self._own(span for shard in shards for span in spans(source, split, shard))

    def _counts(self) -> dict[str, Any]:
        """Return the counts of all splits and their chunks, put together once.

        Raises:
            DataError: too many bad rows, no usable row, or more lanes than rows.
        """
        counts = read_json(self._folder / COUNTS)
        if counts is None:
            splits = {split: merged(self._work, split, self._marks[split]).report() for split in self._work.sources}
            chunks = {split: usable_chunks(self._work, split) for split in self._work.sources}
            counts = {"splits": splits, "chunks": chunks}
            write_json(self._folder / COUNTS, counts)
        return dict(counts)

    # -- deal ------------------------------------------------------------------------------------------------------

    def _buckets(self, counts: dict[str, Any]) -> int:
        """Return the buckets of each shard of train, 0 if train is not shuffled."""
        if self._recipe.data.order != "shuffled":
            return 0
        return int(counts["splits"]["train"]["rows"] // (self._recipe.data.lanes * BUCKET_ROWS) + 1)

    def _deal(self, counts: dict[str, Any]) -> None:
        buckets = self._buckets(counts)
        if not buckets:
            return
        tasks, number = [], 0
        for shard, first, rows in counts["chunks"]["train"]:
            tasks.append((shard, first, number, buckets))
            number += rows
        missing = [task for task in self._own(tasks) if not self._is_dealt(*task[:2])]
        progress = Progress("dealt")
        for rows in self._pool.run("deal", missing):
            progress.add(rows)
        progress.end()

    def _is_dealt(self, shard: int, first: int) -> bool:
        return self._work.chunk("train", shard, first).with_suffix(".index").exists()

    def _make_tokenizer(self, rows: int) -> None:
        """Train or load the tokenizer, unless an earlier start did. The encoder checks the corpus with it."""
        if not (self._folder / TOKENIZER).exists():
            log.info("prepare: tokenizer")
            with published(self._folder / TOKENIZER) as folder:
                save_tokenizer(_tokenizer(self._recipe, self._work.roles, self._work.sources["train"], rows), folder)
        self._work.encode()

    # -- write -----------------------------------------------------------------------------------------------------

    def _write(self, counts: dict[str, Any]) -> dict[str, list[str]]:
        """Write the shards that are missing. Return the names of all."""
        buckets, lanes = self._buckets(counts), self._recipe.data.lanes
        if buckets and not all(self._is_dealt(shard, first) for shard, first, _ in counts["chunks"]["train"]):
            raise UsageError("prepare: not all rows are dealt yet: run every part of stage deal first")
        names: dict[str, list[str]] = {}
        tasks: list[tuple[Any, ...]] = []
        for split in self._work.sources:
            paths = [self._work.chunk(split, shard, first) for shard, first, _ in counts["chunks"][split]]
            dealt = split == "train" and buckets > 0
            count = lanes if dealt else 1
            names[split] = [f"{split}-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
            for shard, name in enumerate(names[split]):
                tasks.append((split, name, shard if dealt else None, paths, buckets))
        own = list(self._own(tasks))
        missing = [task for task in own if not (self._folder / task[1]).exists()]
        kept, progress = len(own) - len(missing), Progress("tokenized and wrote")
        if kept:
            log.info("prepare: %d of %d shards are kept from an earlier start", kept, len(own))
        for done, rows in enumerate(self._pool.run("write", missing), start=kept + 1):
            progress.add(rows, shards=f", shard {done} of {len(own)}")
        progress.end()
        return names


class Progress:
    """Logs rows and rows per second of a stage."""

    def __init__(self, did: str) -> None:
        self._did, self._rows, self._done, self._shards = did, 0, 0, ""
        self._began = self._logged = time.monotonic()

    def add(self, rows: int, done: int = 0, shards: str = "") -> None:
        """Count rows. `done`: those of them that an earlier start did."""
        self._rows, self._done, self._shards = self._rows + rows, self._done + done, shards
        if time.monotonic() - self._logged > PROGRESS_SECONDS:
            self._log()

    def end(self) -> None:
        if self._rows:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        rate = (self._rows - self._done) / max(1e-3, self._logged - self._began)
        log.info("prepare: %s %s rows, %s rows/s%s", self._did, f"{self._rows:,}", f"{rate:,.0f}", self._shards)


def _tokenizer(recipe: Recipe, roles: Roles, train: Source, rows: int) -> PreTrainedTokenizerFast:
    settings = recipe.tokenizer_training
    if settings is None:
        return load_tokenizer(str(recipe.tokenizer_name), recipe.tokenizer_key)
    texts = TrainingTexts(train, recipe.data, roles, settings.sample_rows, rows)
    return train_tokenizers(texts, settings, recipe.data.max_length)
