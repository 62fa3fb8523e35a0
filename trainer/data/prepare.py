"""`rankzero prepare`: a corpus checked, tokenized and written as shuffled shards, which `data.root` then points at.

The folder holds `prepared.json`, `tokenizer/` and parquet shards whose rows carry their original id, the cleaned texts
by role and the token ids. Train is dealt to `data.lanes` shards: of each group of that many rows one goes to each, in
keyed order, so that every shard is an even sample of the corpus; within a shard the order is random. The other splits
keep their order. Nothing is held but one bucket of a shard.
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import key, permutation
from trainer.data.discovery import EMBEDDED, PREPARED, PREPARED_KEYS, Root, refuse_changed
from trainer.data.sources import TOKENS, Source, Split, held_out, open_split
from trainer.data.survey import Survey, survey
from trainer.data.tokenization import Layout, TrainingTexts, load_tokenizer, train_tokenizer
from trainer.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

BUCKET_ROWS = 100_000  # rows that are shuffled in memory at once
MAX_BUCKETS = 256  # files open at once, if there are no more lanes
OTHER_FILES = 256  # what a process may have open beside them
WRITE_ROWS = 1000  # rows of a parquet row group: a resumed reader reads this many too many, at most
VERSION = 2  # of prepared.json; 1 did not hold how an architecture's tokenizer is trained and where its tokens go
Texts = dict[str, str]
Encode = Callable[[list[Texts]], list[dict[str, list[int]]]]


def prepare(
    recipe: Recipe, roles: Iterable[str], encoder: Callable[[PreTrainedTokenizerFast], Encode], out: Path
) -> dict[str, Any]:
    """Writes the prepared corpus of a recipe into the folder `out`.

    Args:
        recipe: data, tokenizer, task and seed are read.
        roles: of the task.
        encoder: makes the task's `encode` from a tokenizer.
        out: a new or empty folder; one that was prepared with the same recipe from the same files is left as it is.

    Returns:
        What stands in `prepared.json`.

    Raises:
        DataError: bad, missing or empty data, as for training.
        UsageError: `out` holds something else, or `data.root` is itself a prepared corpus.
    """
    if not recipe.data.root.startswith(EMBEDDED) and Root(recipe.data.root).prepared() is not None:
        raise UsageError(f"data.root={recipe.data.root!r} is a prepared corpus already; give the original files")
    sources = {split: source for split in _SPLITS if (source := open_split(recipe.data, split, roles)) is not None}
    surveys = {split: survey(source, recipe.data, roles, split) for split, source in sources.items()}
    about: dict[str, Any] = {
        "version": VERSION,
        "keys": _keys(recipe),
        "splits": {split: found.report() for split, found in surveys.items()},
    }
    if _finished(out, about):
        return dict(json.loads((out / PREPARED).read_text(encoding="utf-8")))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        folder = Path(made) / "corpus"
        tokenizer = _tokenizer(recipe, roles, sources["train"], surveys["train"].rows)
        tokenizer.save_pretrained(folder / "tokenizer")
        about["layout"] = _layout(tokenizer)
        encode = encoder(tokenizer)
        about["shards"] = {
            split: _write_split(folder, Path(made), recipe, roles, source, split, surveys[split], encode)
            for split, source in sources.items()
        }
        (folder / PREPARED).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        shutil.move(folder, out)
    return about


def prepared_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast | None:
    """The tokenizer of the prepared corpus that `data.root` points at; None when it points at anything else.

    Raises:
        UsageError: the corpus was prepared with another task or tokenizer, or for an architecture whose tokenizer is
            trained in another way.
    """
    if recipe.data.root.startswith(EMBEDDED):
        return None
    root = Root(recipe.data.root)
    prepared = root.prepared()
    if prepared is None:
        return None
    if prepared.get("version") != VERSION:
        raise UsageError(
            f"{root.url} was prepared by another version of rankzero ({PREPARED}: version {prepared.get('version')}, "
            f"needed: {VERSION}). Run `rankzero prepare` again"
        )
    now = _keys(recipe)
    refuse_changed(root.url, {k: prepared["keys"][k] for k in ("task", "tokenizer")}, now)
    with tempfile.TemporaryDirectory() as folder:
        for path in root.system.ls(f"{root.path}/tokenizer", detail=False):
            (Path(folder) / Path(path).name).write_bytes(root.system.cat_file(path))
        tokenizer = load_tokenizer(folder)
    _check_layout(recipe, root.url, prepared["layout"], tokenizer)
    return tokenizer


def _check_layout(recipe: Recipe, where: str, layout: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare the tokenizer of a prepared corpus with what was written about it, and with the recipe's own.

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
    if _layout(own) != layout or own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"{where} was prepared with another tokenizer than {recipe.tokenizer_name!r} has now: vocabulary or "
            "special tokens differ. Run `rankzero prepare` again"
        )


def _layout(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Where a tokenizer puts its special tokens: [token id, side, type id] of one text and of a pair."""
    return {
        name: [list(part) for part in Layout.of(tokenizer, pair=pair).parts]
        for name, pair in (("text", False), ("pair", True))
    }


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _keys(recipe: Recipe) -> dict[str, Any]:
    """What the rows and their token ids depend on. How a tokenizer is trained may follow from the model."""
    values = recipe.model_dump(mode="json")
    data = {name: values["data"][name] for name in PREPARED_KEYS}
    training = recipe.tokenizer_training
    resolved = None if training is None else training.model_dump(mode="json")
    tokenizer = values["tokenizer"] | {"train": resolved, "pretrained": recipe.tokenizer_name}
    return {"task": values["task"], "tokenizer": tokenizer, "data": data}


def _finished(out: Path, about: dict[str, Any]) -> bool:
    if not out.exists() or not any(out.iterdir()):
        return False
    there = json.loads((out / PREPARED).read_text(encoding="utf-8")) if (out / PREPARED).is_file() else {}
    if {name: there.get(name) for name in about} == about:
        return True
    raise UsageError(f"{out} holds something else already: remove it or name another folder")


def _tokenizer(recipe: Recipe, roles: Iterable[str], train: Source, rows: int) -> PreTrainedTokenizerFast:
    settings = recipe.tokenizer_training
    if settings is None:
        return load_tokenizer(str(recipe.tokenizer_name))
    texts = TrainingTexts(train, recipe.data, roles, settings.sample_rows, rows)
    return train_tokenizer(texts, settings, recipe.data.max_length)


def _write_split(
    folder: Path,
    temporary: Path,
    recipe: Recipe,
    roles: Iterable[str],
    source: Source,
    split: Split,
    found: Survey,
    encode: Encode,
) -> list[str]:
    """Writes the shards of a split and returns their names."""
    rows = _rows(source, recipe, roles, split)
    shuffled = split == "train" and recipe.data.order == "shuffled"
    count = recipe.data.lanes if shuffled else 1
    names = [f"{split}-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
    if not shuffled:
        _write_shard(folder / names[0], rows, encode)
        return names
    buckets = max(1, min(found.rows // (count * BUCKET_ROWS) + 1, MAX_BUCKETS // count))
    paths = [[temporary / f"{shard}-{bucket}.jsonl" for bucket in range(buckets)] for shard in range(count)]
    _deal(rows, paths, recipe.seed)
    for shard, name in enumerate(names):
        _write_shard(folder / name, _shuffled(paths[shard], recipe.seed, shard), encode)
    return names


def _rows(source: Source, recipe: Recipe, roles: Iterable[str], split: Split) -> Iterator[Texts]:
    """The usable rows of a split in order, with their id. (The survey has counted and judged the bad ones.)"""
    data, clean = recipe.data, cleaner(recipe.data.cleaning)
    share = data.validation if isinstance(data.validation, float) and split != "test" else None
    for row in source:
        texts = clean_row(row, roles, data.columns, clean)
        if isinstance(texts, BadRow) or (share is not None and held_out(texts, share) != (split == "validation")):
            continue
        yield {"id": source.name_of(row.id), **texts}


def _deal(rows: Iterator[Texts], paths: Sequence[Sequence[Path]], seed: int) -> None:
    """Each group of rows gives one to each shard, there to a random bucket."""
    _allow_files(sum(map(len, paths)))
    with ExitStack() as stack:
        files = [
            [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in shard] for shard in paths
        ]
        for number, row in enumerate(rows):
            group, place = divmod(number, len(paths))
            if place == 0:
                order = permutation(len(paths), seed, "prepare", group)
            shard = files[int(order[place])]
            bucket = key(seed, "bucket", number) % len(shard)
            shard[bucket].write(json.dumps(row, ensure_ascii=False) + "\n")


def _allow_files(count: int) -> None:
    """So many files may be open at once, beside those that are open already.

    Raises:
        UsageError: the machine does not allow it.
    """
    wanted = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UsageError(
            f"{count} files of shards have to be open at once, but this process may open {hard}: "
            f"`ulimit -n {wanted}` as root (or LimitNOFILE of the service), or fewer data.lanes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _shuffled(paths: Sequence[Path], seed: int, shard: int) -> Iterator[Texts]:
    """The rows of a shard's buckets, each permuted in memory and then removed."""
    for bucket, path in enumerate(paths):
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = file.readlines()
        path.unlink()
        for i in permutation(len(lines), seed, "order", shard, bucket):
            yield json.loads(lines[i])


def _write_shard(path: Path, rows: Iterator[Texts], encode: Encode) -> None:
    """A parquet file of id, texts and token ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writer: Any = None
        while window := list(islice(rows, WRITE_ROWS)):
            examples = encode([{name: text for name, text in row.items() if name != "id"} for row in window])
            columns: dict[str, Any] = {name: pa.array([row[name] for row in window], pa.string()) for name in window[0]}
            for name in examples[0]:
                columns[TOKENS + name] = pa.array([e[name] for e in examples], pa.list_(pa.int32()))
            table = pa.table(columns)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table)
