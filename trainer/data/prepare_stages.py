"""The stages of `rankzero prepare`: what each of them still has to do, in which order, and by how many processes."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from trainer.data.prepare_counts import merged, usable_chunks
from trainer.data.prepare_pool import Pool, Task
from trainer.data.prepare_sample import sample_path
from trainer.data.prepare_spans import spans
from trainer.data.prepare_work import BUCKET_ROWS, Workspace
from trainer.data.sources import Source, Split, of_corpus
from trainer.data.survey import survey
from trainer.errors import DataError, UsageError
from trainer.files import read_json, write_json

log = logging.getLogger("rankzero")

PROGRESS_SECONDS = 10.0  # between two lines of progress
COUNTS = "counts.json"  # a file of each workspace: the counts of its splits and their chunks


class Preparation:
    """The stages of a preparation, in workspaces that no other recipe uses.

    Args:
        workspaces: by name, that of the recipe is "".
        pool: does their work.
        marks: the fingerprints of their splits.
        part: see `prepare`.

    Attributes:
        shards: by workspace, the names of each split's shards, once they are written.
    """

    def __init__(
        self,
        workspaces: Mapping[str, Workspace],
        pool: Pool,
        marks: Mapping[str, dict[Split, str]],
        part: tuple[str, int, int] | None,
    ) -> None:
        self._works, self._pool, self._marks, self._part = workspaces, pool, marks, part
        self._recipe, self._tasks = workspaces[""].recipe, 0
        self.shards: dict[str, dict[str, list[str]]] = {}

    def run(self) -> dict[str, dict[str, Any]]:
        """Do what is missing. Return the counts of the splits of each workspace, which stage read alone lacks."""
        if self._does("read"):
            self._read()
        if self._part is not None and self._part[0] == "read":
            return {}
        counts = {name: self._counts(name) for name in self._works}
        splits = {name: dict(found["splits"]) for name, found in counts.items()}
        if len(splits) > 1:
            splits[""] = self._with_sums(splits)
        if self._does("deal"):
            self._deal(counts, splits)
        if self._does("write"):
            self._write(counts)
        return splits

    def _does(self, stage: str) -> bool:
        return self._part is None or self._part[0] == stage

    def _own(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the tasks of this part."""
        number, count = self._part[1:] if self._part else (0, 1)
        for task in tasks:
            self._tasks += 1
            if (self._tasks - 1) % count == number:
                yield task

    # -- read ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        progress = Progress("read and checked")
        for (name, _, span), found in self._pool.run(self._read_tasks()):
            progress.add(found["rows"], found["done"])
            work = self._works[name]
            if found["bad"] and work.recipe.data.on_bad_row == "fail":
                with _named(name):  # raises the error with all it knows
                    survey(work.sources[span.split], work.recipe.data, work.roles, span.split)
        progress.end()

    def _read_tasks(self) -> Iterator[Task]:
        for name, work in self._works.items():
            if read_json(work.folder / COUNTS) is None:
                for split, source in work.sources.items():
                    yield from ((name, "read", span) for span in self._spans(split, source))

    def _spans(self, split: Split, source: Source) -> Iterator[Any]:
        """Yield the spans of this part: whole files if there are enough for all parts, which are not read twice."""
        shards = range(len(source.shards))
        if self._part is not None and len(shards) >= self._part[2]:
            return (span for shard in self._own(shards) for span in spans(source, split, shard))
        return self._own(span for shard in shards for span in spans(source, split, shard))

    def _counts(self, name: str) -> dict[str, Any]:
        """Return the counts of all splits of a workspace and their chunks, put together once.

        Raises:
            DataError: too many bad rows, no usable row, or more lanes than rows.
        """
        work = self._works[name]
        counts = read_json(work.folder / COUNTS)
        if counts is None:
            splits: dict[str, Any] = {}
            for split in work.sources:
                with _named(name):
                    some = bool(name) and split == "validation"  # a share, which may have no row of some corpora
                    splits[split] = merged(work, split, self._marks[name][split], empty=some).report()
            chunks = {split: usable_chunks(work, split) for split in work.sources}
            counts = {"splits": splits, "chunks": chunks}
            write_json(work.folder / COUNTS, counts)
        return dict(counts)

    def _with_sums(self, splits: Mapping[str, Any]) -> dict[str, Any]:
        """Return the splits of a recipe with `data.mix`: its own ones, and the sums of those that its corpora share.

        Raises:
            DataError: no row is held out for validation.
        """
        found: dict[str, Any] = {}
        for split, mark in self._marks[""].items():
            parts = [of[split] for name, of in splits.items() if name and split in of]
            bad: Counter[str] = sum((Counter(part["bad_rows"]) for part in parts), Counter())
            rows = sum(part["rows"] for part in parts)
            if not rows and split not in splits[""]:
                share = self._recipe.data.validation
                raise DataError(f"data.{split} has no usable row in its part of data.validation={share}; raise it")
            sums = {"rows": rows, "bad_rows": dict(sorted(bad.items())), "fingerprint": mark}
            found[split] = splits[""].get(split, sums)
        return found

    # -- deal ------------------------------------------------------------------------------------------------------

    def _buckets(self, counts: Mapping[str, Any]) -> int:
        """Return the buckets of each shard of train, 0 if train is not shuffled."""
        if self._recipe.data.order != "shuffled" or "train" not in counts["splits"]:
            return 0
        return int(counts["splits"]["train"]["rows"] // (self._recipe.data.lanes * BUCKET_ROWS) + 1)

    def _deal(self, counts: Mapping[str, Any], splits: Mapping[str, Any]) -> None:
        """Deal the rows of train, and make the tokenizer alongside, unless an earlier start did."""
        tasks: list[Task] = []
        for name, found in counts.items():
            if buckets := self._buckets(found):
                number = 0
                for shard, first, rows in found["chunks"]["train"]:
                    tasks.append((name, "deal", shard, first, number, buckets))
                    number += rows
        missing = [task for task in self._own(tasks) if not self._is_dealt(task[0], *task[2:4])]
        makes = self._part is None or self._part[1] == 0
        if makes and not self._works[""].tokenizer.exists():
            log.info("prepare: tokenizer")
            rows = {name: {"rows": found["train"]["rows"]} for name, found in splits.items() if "train" in found}
            known = {**rows[""], "corpora": rows}
            missing.insert(0, ("", "make_tokenizer", known, self._sample(counts, known)))
        progress = Progress("dealt")
        for _, dealt in self._pool.run(missing):
            progress.add(dealt)
        progress.end()
        if makes and self._part is not None:
            deque(self._pool.run(self._checks(counts)), maxlen=0)

    def _sample(self, counts: Mapping[str, Any], rows: Mapping[str, Any]) -> list[list[Path]] | None:
        """Copy the rows that the tokenizer is trained on. Return the paths, for each of the texts.

        Return None where they have to be read from the corpus, since chunks are removed when they are dealt: other
        jobs of an array deal at the same time.
        """
        if self._part is not None:
            return None
        names, files = dict[int, str](), 0  # corpora by the number of their first file among those of all
        for name, work in self._works.items():
            if "train" in work.sources:
                names[files] = name
                files += len(work.sources["train"].shards)
        tasks, paths = dict[Task, Path](), list[list[Path]]()
        for texts in self._works[""].texts(rows):
            first, name = texts.source.first, names[texts.source.first]
            samples: dict[Task, Path] = {}
            for shard, row, _ in counts[name]["chunks"]["train"]:
                task = (name, "sample", shard, row, first + shard, texts.limit, texts.rows)
                samples[task] = sample_path(self._works[name].chunk("train", shard, row), texts.limit)
            tasks |= samples
            paths.append([*samples.values()])
        missing = [task for task, path in tasks.items() if not path.exists()]
        if not all(self._works[name].chunk("train", *at).exists() for name, _, *at, _, _, _ in missing):
            return None
        deque(self._pool.run(missing), maxlen=0)
        return paths

    def _is_dealt(self, name: str, shard: int, first: int) -> bool:
        return self._works[name].chunk("train", shard, first).with_suffix(".index").exists()

    # -- write -----------------------------------------------------------------------------------------------------

    def _write(self, counts: Mapping[str, Any]) -> None:
        """Write the shards that are missing, and name all in `shards`.

        One process looks for unknown tokens first. With several, it is one of their first tasks.
        """
        tasks: list[Task] = []
        for name, found in counts.items():
            tasks += self._shard_tasks(name, found)
        own = list(self._own(tasks))
        missing = [task for task in own if not (self._works[task[0]].folder / task[3]).exists()]
        kept, progress = len(own) - len(missing), Progress("tokenized and wrote")
        if kept:
            log.info("prepare: %d of %d shards are kept from an earlier start", kept, len(own))
        checks = self._checks(counts) if self._part is None else []
        done = kept
        for task, rows in self._pool.run([*checks, *missing]):
            done += task[1] == "write"
            progress.add(rows, shards=f", shard {done} of {len(own)}")
        progress.end()

    @staticmethod
    def _checks(counts: Mapping[str, Any]) -> list[Task]:
        """Return the tasks that look for unknown tokens in the first rows of all splits that have rows."""
        splits = [(name, split, facts) for name, found in counts.items() for split, facts in found["splits"].items()]
        return [(name, "check_tokens", split) for name, split, facts in splits if facts["rows"]]

    def _shard_tasks(self, name: str, counts: Mapping[str, Any]) -> list[Task]:
        """Return the task of each shard of a workspace.

        Rows that keep their order are one shard. Of a corpus of `data.mix` each file is one, since the order of files
        changes between passes.
        """
        buckets, work, chunks = self._buckets(counts), self._works[name], counts["chunks"]
        if buckets and not all(self._is_dealt(name, *chunk[:2]) for chunk in chunks["train"]):
            raise UsageError("prepare: not all rows are dealt yet: run every part of stage deal first")
        tasks: list[Task] = []
        for split in work.sources:
            paths = [work.chunk(split, shard, first) for shard, first, _ in chunks[split]]
            shards: list[tuple[int | None, Any]] = [(None, paths)]
            if split == "train" and buckets:
                shards = [(shard, paths) for shard in range(self._recipe.data.lanes)]
            elif name:
                of_file: dict[int, Any] = {}
                for path, (shard, _, rows) in zip(paths, chunks[split], strict=True):
                    of_file.setdefault(shard, []).extend([path] if rows else [])
                shards = [(None, some) for some in of_file.values() if some]
            names = [f"{split}-{number:05d}-of-{len(shards):05d}.parquet" for number in range(len(shards))]
            self.shards.setdefault(name, {})[split] = names
            for shard_name, (shard, of) in zip(names, shards, strict=True):
                tasks.append((name, "write", split, shard_name, shard, of, buckets))
        return tasks


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


def _named(name: str) -> Any:
    """Return a context in which messages about data name the corpus of `data.mix`."""
    return of_corpus(name) if name else nullcontext()
