"""The shards of a split: files of a pattern, parallel text files, files of a prepared or of a generated corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from trainer.data import formats
from trainer.data.hub_datasets import dataset_files
from trainer.data.pairing import pairs
from trainer.data.root import Root, normal
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig, Patterns

EMBEDDED = "embedded://"
MOST_SHARDS = 100_000  # of a generated corpus
_NUMBER = re.compile(r"[0-9]{1,12}")
# Keys of `data` that are fixed when a corpus is prepared.
PREPARED_KEYS = (
    *("train", "validation", "test", "columns", "cleaning", "max_length"),
    *("delimiter", "quote", "header", "encoding"),
)
CORPORA = "corpora"  # the folder of a prepared mixture that has a prepared corpus for each entry of data.mix


@dataclass(frozen=True)
class Shard:
    """One file of a split, or one set of parallel text files.

    Attributes:
        name: path relative to the root, "train.jsonl"; "train.de+train.en" for parallel text.
        urls: one, or one per role for parallel text.
        roles: the roles of `urls` for text files, else empty.
        format: jsonl, csv, tsv, parquet, arrow, text, conll, embedded or prepared.
        size: bytes as stored; None for a generated shard.
        versions: what the store says about the content of each file, see `Root.version_of`.
    """

    name: str
    urls: tuple[str, ...]
    roles: tuple[str, ...]
    format: str
    size: int | None
    versions: tuple[str | None, ...] = ()


def split_shards(data: DataConfig, patterns: Patterns, split: str, *, prepared_split: str = "") -> list[Shard]:
    """Return the shards of a split in their order.

    A root written by `prepare` has its own shards, whatever the patterns.

    Args:
        data: the section of the recipe, or with `prepared_split` that of a corpus of `data.mix`.
        patterns: of the files.
        split: for messages.
        prepared_split: the split of a prepared corpus of `data.mix`.

    Raises:
        DataError: no file matches, an unknown format, text files that do not pair up, an unreachable root.
        UsageError: the corpus was prepared with another recipe, or a pattern is not valid.
    """
    if data.root.startswith(EMBEDDED):
        return embedded_shards(data.root, patterns, split)
    if data.dataset is not None:
        root, files = dataset_files(data, patterns, split)
        return [_shard(root, (name,), (), split) for name in files]
    root = Root(data.root)
    if (prepared := root.prepared()) is not None:
        return _prepared_shards(root, prepared, data, prepared_split or split, of_mix=bool(prepared_split))
    if isinstance(patterns, dict):
        return _parallel_shards(root, patterns, split)
    return _file_shards(root, patterns, split)


def own_root(data: DataConfig) -> Root | None:
    """Return the folder that `data.root` names. None for a generated corpus and for a data set of the Hub."""
    return None if data.root.startswith(EMBEDDED) or data.dataset is not None else Root(data.root)


def corpora(data: DataConfig) -> dict[str, DataConfig]:
    """Return the section of each corpus of `data.mix`.

    Those that were prepared together are in the folder of `data.root`, whatever their own roots.
    """
    root = own_root(data) if data.mix else None
    together = ((root.prepared() if root is not None else None) or {}).get(CORPORA, ())
    sections = {entry.name: data.of_corpus(entry) for entry in data.mix}
    for name in sections.keys() & set(together):
        place = {"root": f"{data.root.rstrip('/')}/{CORPORA}/{name}", "dataset": None, "revision": None}
        sections[name] = sections[name].model_copy(update=place)
    return sections


def mixture(data: DataConfig) -> dict[str, Any]:
    """Return what the tokenizer and the rows of a prepared mixture depend on."""
    values = data.model_dump(mode="json", include={"mix", "mix_temperature"})
    return {**values, "mix": [{key: of for key, of in entry.items() if key != "root"} for entry in values["mix"]]}


def _prepared_shards(
    root: Root, prepared: dict[str, Any], data: DataConfig, split: str, *, of_mix: bool
) -> list[Shard]:
    """Return the shards of a split of a prepared corpus.

    Raises:
        UsageError: it was prepared with another recipe. Of a corpus of `data.mix` only train and a held-out share
            of it are used, and of the root of a mixture only the other splits.
        DataError: it is a mixture without that corpus.
    """
    if of_mix and CORPORA in prepared:
        raise DataError(
            f"data.root={root.url!r} is a prepared mixture of {', '.join(prepared[CORPORA])}: give an entry of another "
            "name its own root, or run `rankzero prepare` for this recipe"
        )
    then = dict(prepared["keys"]["data"])
    now = data.model_dump(mode="json", include=set(PREPARED_KEYS))
    for keys in (then, now):
        if of_mix and not isinstance(keys["validation"], float):
            keys["validation"] = None
        for key in ("test",) if of_mix else ("train",) if data.mix else ():
            del keys[key]
    refuse_changed(root.url, then, now, "data.")
    names = prepared["shards"][split]
    return [
        Shard(name, (root.url_of(name),), (), "prepared", root.size_of(name), (root.version_of(name),))
        for name in names
    ]


def refuse_changed(where: str, then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """Raise a UsageError that lists every key whose value is not the one that the corpus was prepared with."""
    changed = [key for key in then if then[key] != now.get(key)]
    if changed:
        lines = "".join(f"\n  {prefix}{key}: {then[key]!r} -> {now.get(key)!r}" for key in changed)
        raise UsageError(f"{where} was prepared with another recipe:{lines}\nRun `rankzero prepare` again for this one")


def _file_shards(root: Root, patterns: str | list[str], split: str) -> list[Shard]:
    """Return one shard per file that matches any of the patterns, sorted by name."""
    listed: dict[str, list[str]] = {}
    for pattern in _as_list(patterns):
        for name in root.match(pattern, split):
            listed.setdefault(normal(name), []).append(pattern)
    if repeated := {name: by for name, by in listed.items() if len(by) > 1}:
        name, by = next(iter(repeated.items()))
        more = f" ({len(repeated)} files are)" if len(repeated) > 1 else ""
        raise DataError(
            f"data.{split}: {name} is listed {len(by)} times{more}, by {', '.join(map(repr, by))}. List a file once; "
            "to use rows more often, make copies of the file under other names"
        )
    return [_shard(root, (name,), (), split) for name in sorted(listed)]


def _as_list(patterns: str | list[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _shard(root: Root, names: tuple[str, ...], roles: tuple[str, ...], split: str) -> Shard:
    extension = Path(formats.without_compression(names[0])).suffix.lower()
    kind = "text" if roles else formats.EXTENSIONS.get(extension)
    if kind is None or (kind in ("parquet", "arrow") and formats.without_compression(names[0]) != names[0]):
        allowed = ", ".join(formats.EXTENSIONS)
        raise DataError(
            f"data.{split}: {names[0]!r} has the unknown format {Path(names[0]).suffix!r}; known: {allowed}; all but "
            "parquet and arrow also with .gz or .zst; parallel text files are set as a mapping role: file"
        )
    sizes = [root.size_of(name) or 0 for name in names]
    roles = roles or (("text",) if kind == "text" else ())
    urls, versions = tuple(map(root.url_of, names)), tuple(map(root.version_of, names))
    return Shard("+".join(names), urls, roles, kind, sum(sizes), versions)


def _parallel_shards(root: Root, patterns: dict[str, str], split: str) -> list[Shard]:
    if not patterns:
        raise UsageError(f"data.{split} is an empty mapping: set role: file, such as src: train.de")
    names = {role: root.match(pattern, split) for role, pattern in patterns.items()}
    for name in [name for of_role in names.values() for name in of_role]:
        kind = formats.EXTENSIONS.get(Path(formats.without_compression(name)).suffix.lower(), "text")
        if kind != "text":
            raise DataError(f"data.{split}: a mapping role: file is for parallel text files, {name!r} is {kind}")
    return [_shard(root, pair, tuple(names), split) for pair in pairs(names, patterns, split)]


def embedded_shards(root: str, patterns: Patterns, split: str) -> list[Shard]:
    """Return shards of a generated corpus for a pattern such as "train?rows=24000&shards=8&seed=0"."""
    if isinstance(patterns, dict):
        raise UsageError(f"data.{split}: {root} takes a pattern such as 'train?rows=24000', not a mapping")
    shards = []
    for pattern in _as_list(patterns):
        name, _, query = pattern.partition("?")
        values = {"rows": "1000", "shards": "1", "seed": "0"} | dict(parse_qsl(query, keep_blank_values=True))
        if (
            name not in ("train", "validation", "test")
            or len(values) > 3
            or not all(map(_NUMBER.fullmatch, values.values()))
        ):
            raise UsageError(
                f"data.{split}={pattern!r}: an embedded corpus takes train, validation or test and then whole numbers "
                "for rows, shards and seed: 'train?rows=24000&shards=8&seed=0'"
            )
        if not 0 < int(values["shards"]) <= MOST_SHARDS:
            raise UsageError(f"data.{split}={pattern!r}: shards={values['shards']}, 1 to {MOST_SHARDS:,} are allowed")
        for i in range(int(values["shards"])):
            url = f"{root}/{name}?{urlencode({**values, 'shard': i})}"
            shards.append(Shard(f"{name}-{i:05d}-of-{int(values['shards']):05d}", (url,), (), "embedded", None))
    return shards
