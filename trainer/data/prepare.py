"""`rankzero prepare`: check and tokenize a corpus, and write it as shuffled shards, which `data.root` then points at.

The folder has `prepared.json`, `tokenizer/` and Parquet shards. A row has its original id, the clean values by role
and the token ids. Train is dealt to `data.lanes` shards: of each group of that many rows one goes to each shard, in
keyed order, so that every shard is an even sample of the corpus. The order within a shard is random. The other splits
keep their order. At most one bucket of a shard is in memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import key, permutation
from trainer.data.discovery import PREPARED_KEYS, own_root, refuse_changed
from trainer.data.roles import Roles
from trainer.data.root import PREPARED
from trainer.data.sources import TOKENS, Source, Split, belongs, open_splits
from trainer.data.survey import survey
from trainer.data.target_tokenizer import save_tokenizer, target_of
from trainer.data.token_ids import Layout
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizers
from trainer.errors import UsageError
from trainer.stages import published, unchanged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

BUCKET_ROWS = 100_000  # rows that are shuffled in memory at once
WRITE_ROWS = 1000  # rows of a Parquet row group: a resumed reader reads at most this many too many
VERSION = 2  # of prepared.json; 1 had no layout, and not how the tokenizer of an architecture is trained
Values = dict[str, Any]
Encode = Callable[[list[Values]], list[dict[str, list[int]]]]


def prepare(
    recipe: Recipe, roles: Roles, encoder: Callable[[PreTrainedTokenizerFast], Encode], out: Path
) -> dict[str, Any]:
    """Write the prepared corpus of a recipe into the folder `out`.

    Args:
        recipe: data, tokenizer, task and seed are read.
        roles: of the task.
        encoder: makes the task's `encode` from a tokenizer.
        out: a new or empty folder. If it was prepared with the same recipe from the same files, it is not changed.

    Returns:
        The content of `prepared.json`.

    Raises:
        DataError: bad, missing or empty data, as for training.
        UsageError: `out` has other content, or `data.root` is itself a prepared corpus.
        CheckpointError: the disk is full or not writable.
    """
    if (root := own_root(recipe.data)) is not None and root.prepared() is not None:
        raise UsageError(f"data.root={recipe.data.root!r} is a prepared corpus already; set it to the original files")
    if recipe.data.mix:
        raise UsageError(
            "rankzero prepare writes one corpus, and data.mix has several: give each its own recipe with data.train"
        )
    sources = open_splits(recipe.data, roles)
    surveys = {split: survey(source, recipe.data, roles, split) for split, source in sources.items()}
    about: dict[str, Any] = {
        "version": VERSION,
        "keys": _keys(recipe),
        "splits": {split: counts.report() for split, counts in surveys.items()},
    }
    if out.exists() and any(out.iterdir()):
        earlier = json.loads((out / PREPARED).read_text(encoding="utf-8")) if (out / PREPARED).is_file() else None
        if earlier is not None and unchanged(about, earlier):
            return dict(earlier)
        raise UsageError(f"{out} has other content: remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with published(out) as folder:
        tokenizer = _tokenizer(recipe, roles, sources["train"], surveys["train"].rows)
        save_tokenizer(tokenizer, folder / "tokenizer")
        about["layout"] = _layout(tokenizer)
        encode, shards = encoder(tokenizer), dict[str, list[str]]()
        for split, source in sources.items():
            rows = _rows(source, recipe, roles, split)
            if split == "train" and recipe.data.order == "shuffled":
                shards[split] = _write_shuffled(folder, rows, surveys[split].rows, recipe, roles, encode)
            else:
                shards[split] = [_shard_name(split, 0, 1)]
                _write_shard(folder / shards[split][0], rows, roles, encode)
        about["shards"] = shards
        (folder / PREPARED).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return about


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


def _rows(source: Source, recipe: Recipe, roles: Roles, split: Split) -> Iterator[Values]:
    """Yield the usable rows of a split in order, with their id. The survey has counted the bad ones."""
    clean = cleaner(recipe.data.cleaning)
    for row in source:
        values = clean_row(row, roles, recipe.data.columns, clean)
        if not isinstance(values, BadRow) and belongs(values, recipe.data, split):
            yield {"id": source.name_of(row.id), **values}


def _shard_name(split: str, shard: int, count: int) -> str:
    return f"{split}-{shard:05d}-of-{count:05d}.parquet"


def _write_shuffled(
    folder: Path, rows: Iterator[Values], total: int, recipe: Recipe, roles: Roles, encode: Encode
) -> list[str]:
    """Write the shards of train and return their names."""
    count = recipe.data.lanes
    buckets = total // (count * BUCKET_ROWS) + 1
    names = [_shard_name("train", shard, count) for shard in range(count)]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        paths = [[Path(made) / f"{shard}-{bucket}.jsonl" for bucket in range(buckets)] for shard in range(count)]
        _deal(rows, paths, recipe.seed)
        for shard, name in enumerate(names):
            _write_shard(folder / name, _shuffled(paths[shard], recipe.seed, shard), roles, encode)
    return names


def _deal(rows: Iterator[Values], paths: Sequence[Sequence[Path]], seed: int) -> None:
    """Write one row of each group into each shard, there into a random bucket. One file is open at a time."""
    numbered = enumerate(rows)
    while window := list(islice(numbered, BUCKET_ROWS)):
        lines: dict[Path, list[str]] = {}
        for number, row in window:
            group, place = divmod(number, len(paths))
            if place == 0 or number == window[0][0]:
                order = permutation(len(paths), seed, "prepare", group)
            shard = paths[int(order[place])]
            path = shard[key(seed, "bucket", number) % len(shard)]
            lines.setdefault(path, []).append(json.dumps(row, ensure_ascii=False) + "\n")
        for path, of_path in lines.items():
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(of_path)


def _shuffled(paths: Sequence[Path], seed: int, shard: int) -> Iterator[Values]:
    """Yield the rows of a shard's buckets. Each bucket is permuted in memory and then removed."""
    for bucket, path in enumerate(paths):
        if not path.exists():  # no row was dealt to it
            continue
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = file.readlines()
        path.unlink()
        for i in permutation(len(lines), seed, "order", shard, bucket):
            yield json.loads(lines[i])


def _write_shard(path: Path, rows: Iterator[Values], roles: Roles, encode: Encode) -> None:
    """Write a Parquet file of id, values and token ids."""
    types = {"id": pa.string()}
    for name, role in roles.items():
        item = pa.type_for_alias(role.stored)
        types[name] = pa.list_(item) if role.is_list else item
    with ExitStack() as stack:
        writer: Any = None
        while window := list(islice(rows, WRITE_ROWS)):
            examples = encode([{name: value for name, value in row.items() if name != "id"} for row in window])
            columns = {name: pa.array([row[name] for row in window], types[name]) for name in window[0]}
            for name in examples[0]:
                columns[TOKENS + name] = _array([e[name] for e in examples])
            table = pa.table(columns)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table)


def _array(rows: Sequence[Sequence[float]]) -> Any:
    """Return lists of ids or of numbers as an Arrow array."""
    floats = any(isinstance(value, float) for row in rows for value in row[:1])
    return pa.array(rows, pa.list_(pa.float64() if floats else pa.int32()))
