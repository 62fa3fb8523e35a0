"""`rankzero prepare`: check and tokenize a corpus, and write it as shuffled shards, which `data.root` then points at.

The folder has `prepared.json`, `tokenizer/` and Parquet shards. A row has its original id, the clean values by role
and the token ids. Train is dealt to `data.lanes` shards: of each group of that many rows one goes to each shard, in
keyed order, so that every shard is an even sample of the corpus. The order within a shard is random. The other splits
keep their order. At most one bucket of a shard is in memory of a process.

The corpus is made in a hidden folder next to its place, in the stages read, deal and write (`prepare_work.py`). What is
done there is kept when the command ends early, and the next start resumes. The bytes do not depend on the processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.discovery import PREPARED_KEYS, own_root, refuse_changed
from trainer.data.prepare_counts import merged, usable_chunks
from trainer.data.prepare_pool import Parts, Pool
from trainer.data.prepare_work import BUCKET_ROWS, CHUNK_ROWS, INDEXED_BYTES, ROWS, TOKENIZER, Encode, Workspace, spans
from trainer.data.roles import Roles
from trainer.data.root import PREPARED
from trainer.data.sources import Source, Split, fingerprint, open_splits
from trainer.data.survey import survey
from trainer.data.target_tokenizer import save_tokenizer, target_of
from trainer.data.token_ids import Layout
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizers
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.files import publish, read_json, write_json
from trainer.lock_file import flock
from trainer.stages import published, unchanged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

log = logging.getLogger("rankzero")

VERSION = 2  # of prepared.json; 1 had no layout, and not how the tokenizer of an architecture is trained
STAGES = ("read", "deal", "write")
PROGRESS_SECONDS = 10.0  # between two lines of progress
IDENTITY, COUNTS = "identity.json", "counts.json"  # files of the workspace


def prepare(
    recipe: Recipe,
    roles: Roles,
    encoder: Callable[[PreTrainedTokenizerFast], Encode],
    out: Path,
    *,
    processes: int = 1,
    remake: Callable[[], Parts] | None = None,
    part: tuple[str, int, int] | None = None,
) -> dict[str, Any]:
    """Write the prepared corpus of a recipe into the folder `out`.

    Args:
        recipe: data, tokenizer, task and seed are read.
        roles: of the task.
        encoder: makes the task's `encode` from a tokenizer.
        out: a new or empty folder. If it was prepared with the same recipe from the same files, it is not changed.
        processes: of one thread each.
        remake: makes recipe, roles and encoder in another process, to which it is sent. Needed for several processes.
        part: (stage, number from 0, count): do one of `count` equal parts of a stage only, for an array of jobs. The
            stages follow one another. A call without `part` does what is missing and publishes the corpus.

    Returns:
        The content of `prepared.json`, without the shards if only a part was done.

    Raises:
        DataError: bad, missing or empty data, as for training.
        UsageError: `out` has other content, or `data.root` is itself a prepared corpus; another process prepares `out`.
        CheckpointError: the disk is full or not writable.
        RankError: a process was killed.
    """
    if (root := own_root(recipe.data)) is not None and root.prepared() is not None:
        raise UsageError(f"data.root={recipe.data.root!r} is a prepared corpus already; set it to the original files")
    sources = open_splits(recipe.data, roles)
    marks = {split: fingerprint(source) for split, source in sources.items()}
    if out.exists() and any(out.iterdir()):
        return _earlier(recipe, roles, out, sources, marks)
    folder = out.with_name(f".{out.name}.preparing")
    with _claimed(folder, _identity(recipe, marks), shared=part is not None):
        workspace = Workspace(folder, recipe, roles, encoder)
        bytes_ = sum(shard.size or 0 for source in sources.values() for shard in source.shards)
        pool = Pool(workspace, processes if bytes_ >= INDEXED_BYTES else 1, remake)
        try:
            about = read_json(folder / PREPARED) or _Preparation(workspace, pool, marks, part).run()
        except (DataError, UsageError):  # of no use for a corrected corpus or recipe
            pool.close()
            if part is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            pool.close()
        if part is None:
            _publish(folder, out, about)
    return about


def _earlier(
    recipe: Recipe, roles: Roles, out: Path, sources: dict[Split, Source], marks: dict[Split, str]
) -> dict[str, Any]:
    """Return the content of `prepared.json` of a corpus that was prepared with the same recipe from the same files.

    Raises:
        UsageError: the folder has other content.
    """
    earlier = json.loads((out / PREPARED).read_text(encoding="utf-8")) if (out / PREPARED).is_file() else {}
    found = earlier.get("splits", {})
    same = unchanged({"version": VERSION, "keys": _keys(recipe)}, earlier)
    if not same or {split: of.get("fingerprint") for split, of in found.items()} != marks:
        raise UsageError(f"{out} has other content: remove it or name another folder")
    for split, source in sources.items():
        if found[split]["bad_rows"]:
            survey(source, recipe.data, roles, split)  # the recipe may allow fewer than it did
    return dict(earlier)


def _identity(recipe: Recipe, marks: dict[Split, str]) -> dict[str, Any]:
    """Return what the files of a workspace depend on."""
    data = recipe.data
    return {
        "version": [VERSION, version("rankzero")],
        "keys": _keys(recipe),
        "seed": recipe.seed,
        "data": [data.lanes, data.order, data.block_rows, data.on_bad_row, data.max_bad_fraction],
        "rows": [CHUNK_ROWS, BUCKET_ROWS],
        "fingerprints": marks,
    }


@contextlib.contextmanager
def _claimed(folder: Path, identity: dict[str, Any], shared: bool) -> Iterator[None]:
    """Make the workspace, or use that of an earlier start. One of another recipe or of other files is emptied.

    Args:
        shared: jobs of an array use it together.

    Raises:
        UsageError: another process uses it, or with `shared` it is of another recipe or other files.
        CheckpointError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("ab")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}; choose --out") from None
    with file:
        if not shared and not flock(file):
            raise UsageError(f"another process prepares {folder}: wait for it, or choose another --out")
        earlier = read_json(folder / IDENTITY)
        if earlier is not None and earlier != identity:
            if shared:
                raise UsageError(f"{folder} is of another recipe or of other files: remove it")
            log.info("prepare: the recipe or the files have changed: begun again")
            for path in folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / ROWS).mkdir(exist_ok=True)
        if earlier != identity:
            write_json(folder / IDENTITY, identity)
        yield


def _publish(folder: Path, out: Path, about: dict[str, Any]) -> None:
    """Turn the complete workspace into the corpus. After the manifest is written, a start only completes this."""
    write_json(folder / PREPARED, about)
    shutil.rmtree(folder / ROWS)
    for path in [folder / COUNTS, *folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    publish(folder, out)
    for name in ("lock", IDENTITY):
        (out / name).unlink()


class _Preparation:
    """The stages of a preparation, in a claimed workspace."""

    def __init__(
        self, workspace: Workspace, pool: Pool, marks: dict[Split, str], part: tuple[str, int, int] | None
    ) -> None:
        self._work, self._pool, self._marks, self._part = workspace, pool, marks, part
        self._recipe, self._folder = workspace.recipe, workspace.folder

    def run(self) -> dict[str, Any]:
        """Do what is missing. Return the content of `prepared.json`."""
        if self._does("read") and read_json(self._folder / COUNTS) is None:
            self._read()
        if self._part is not None and self._part[0] == "read":
            return {"splits": {}}
        counts = self._counts()
        about = {"version": VERSION, "keys": _keys(self._recipe), "splits": counts["splits"]}
        if self._does("deal"):
            self._deal(counts)
        if self._part is None or self._part[:2] == ("deal", 0):
            self._make_tokenizer(counts["splits"]["train"]["rows"])
        if self._does("write"):
            about["layout"] = _layout(load_tokenizer(str(self._folder / TOKENIZER)))
            about["shards"] = self._write(counts)
        return about

    def _does(self, stage: str) -> bool:
        return self._part is None or self._part[0] == stage

    def _own(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the tasks of this part."""
        number, count = self._part[1:] if self._part else (0, 1)
        return (task for i, task in enumerate(tasks) if i % count == number)

    # -- read ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        progress = _Progress("read and checked")
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
            if not self._work.chunk("train", shard, first).with_suffix(".index").exists():
                tasks.append((shard, first, number, buckets))
            number += rows
        progress = _Progress("dealt")
        for rows in self._pool.run("deal", self._own(tasks)):
            progress.add(rows)
        progress.end()

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
        names: dict[str, list[str]] = {}
        tasks = []
        for split in self._work.sources:
            paths = [self._work.chunk(split, shard, first) for shard, first, _ in counts["chunks"][split]]
            dealt = split == "train" and buckets > 0
            count = lanes if dealt else 1
            names[split] = [f"{split}-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
            for shard, name in enumerate(names[split]):
                if not (self._folder / name).exists():
                    tasks.append((split, name, shard if dealt else None, paths, buckets))
        progress, total = _Progress("tokenized and wrote"), sum(map(len, names.values()))
        left = total - len(tasks)
        if left:
            log.info("prepare: %d of %d shards are kept from an earlier start", left, total)
        for done, rows in enumerate(self._pool.run("write", self._own(tasks)), start=left + 1):
            progress.add(rows, shards=f", shard {done} of {total}")
        progress.end()
        return names


class _Progress:
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


def prepared_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of the prepared corpus that `data.root` points at, None if it points at anything else.

    Raises:
        UsageError: the corpus was prepared with another task or tokenizer, or for an architecture whose tokenizer is
            trained in another way.
    """
    root = own_root(recipe.data)
    if root is None or (prepared := root.prepared()) is None:
        return None
    if prepared.get("version") != VERSION:
        raise UsageError(
            f"{root.url} was prepared by another version of rankzero ({PREPARED}: version {prepared.get('version')}, "
            f"needed: {VERSION}). Run `rankzero prepare` again"
        )
    refuse_changed(root.url, {k: prepared["keys"][k] for k in ("task", "tokenizer")}, _keys(recipe))
    with tempfile.TemporaryDirectory() as folder:
        for path in root.system.find(f"{root.path}/tokenizer"):
            copy = Path(folder, path.rpartition("/tokenizer/")[2])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(root.system.cat_file(path))
        tokenizer = load_tokenizer(folder)
    _check_layout(recipe, root.url, prepared["layout"], tokenizer)
    return tokenizer


def _check_layout(recipe: Recipe, where: str, layout: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare the tokenizer of a prepared corpus with the recorded layout, and with the recipe's own tokenizer.

    Raises:
        UsageError: special tokens or vocabulary differ, so that the rows' ids mean something else to the model.
    """
    if layout != _layout(tokenizer):
        raise UsageError(
            f"{where}: its tokenizer/ is not the one that it was prepared with. Run `rankzero prepare` again"
        )
    if recipe.tokenizer_name is None:
        return
    try:
        own = load_tokenizer(recipe.tokenizer_name)
    except UsageError:  # not available here, and not needed
        return
    if _layout(own) != layout or _vocabularies(own) != _vocabularies(tokenizer):
        raise UsageError(
            f"{where} was prepared with another tokenizer than {recipe.tokenizer_name!r} has now: vocabulary or "
            "special tokens differ. Run `rankzero prepare` again"
        )


def _layout(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return where a tokenizer puts its special tokens: [token id, side, type id] of one text and of a pair."""
    return {
        name: [list(part) for part in Layout.of(tokenizer, pair=pair).parts]
        for name, pair in (("text", False), ("pair", True))
    }


def _vocabularies(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of tokens of source and target texts."""
    return tokenizer.get_vocab(), target_of(tokenizer).get_vocab()


def _keys(recipe: Recipe) -> dict[str, Any]:
    """Return what the rows and their token ids depend on. The training of a tokenizer may depend on the model."""
    values = recipe.model_dump(mode="json")
    training = recipe.tokenizer_training
    # a shared vocabulary is recorded as before there were separate ones
    separate = {"shared", "target_vocab_size"} if training is not None and training.shared else set()
    resolved = None if training is None else training.model_dump(mode="json", exclude=separate)
    return {
        "task": values["task"],
        "tokenizer": values["tokenizer"] | {"train": resolved, "pretrained": recipe.tokenizer_name},
        "data": {name: values["data"][name] for name in PREPARED_KEYS},
    }


def _tokenizer(recipe: Recipe, roles: Roles, train: Source, rows: int) -> PreTrainedTokenizerFast:
    settings = recipe.tokenizer_training
    if settings is None:
        return load_tokenizer(str(recipe.tokenizer_name), recipe.tokenizer_key)
    texts = TrainingTexts(train, recipe.data, roles, settings.sample_rows, rows)
    return train_tokenizers(texts, settings, recipe.data.max_length)
