"""Which files a split consists of: patterns below an fsspec root, parallel text files, generated corpora."""

from __future__ import annotations

import difflib
import glob
import json
import logging
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode

from trainer.data import formats
from trainer.data.pairing import pairs
from trainer.data.saved_datasets import saved_files, without_about
from trainer.data.skipped_files import left_out
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig, Patterns

log = logging.getLogger("rankzero")
_logged: set[tuple[str, ...]] = set()

EMBEDDED = "embedded://"
PREPARED = "prepared.json"  # marks a root written by `prepare`
# Keys of `data` that are fixed when a corpus is prepared.
PREPARED_KEYS = (
    *("train", "validation", "test", "columns", "cleaning", "max_length"),
    *("delimiter", "quote", "header", "encoding"),
)


@dataclass(frozen=True)
class Shard:
    """One file of a split, or one set of parallel text files.

    Attributes:
        name: path relative to the root, "train.jsonl"; "train.de+train.en" for parallel text.
        urls: one, or one per role for parallel text.
        roles: the roles of `urls` for text files, else empty.
        format: jsonl, csv, tsv, parquet, arrow, text, embedded or prepared.
        size: bytes as stored; None for a generated shard.
    """

    name: str
    urls: tuple[str, ...]
    roles: tuple[str, ...]
    format: str
    size: int | None


class Root:
    """A folder behind an fsspec URL."""

    def __init__(self, root: str):
        self.url = root if "://" in root else str(Path(root).expanduser().absolute())
        try:
            self.system, self.path = formats.located(self.url)
        except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: foo"
            raise DataError(f"data.root={root!r} cannot be opened: {error}") from None
        self.path = self.path.rstrip("/")

    def match(self, pattern: str, split: str) -> list[str]:
        """Names below the root, sorted, of the files that match; at least one."""
        try:
            found = self._matching(pattern)
            if found:
                return found
            if self.system.isdir(path := f"{self.path}/{pattern}".rstrip("/")):
                inside = sorted(self._name(info["name"]) for info in self.system.ls(path, detail=True))
                raise DataError(
                    f"data.{split}={pattern!r} is a folder below data.root={self.url!r}: give a pattern of its files, "
                    f"such as {_pattern_for(pattern, inside)!r}; there: {', '.join(inside[:5]) or 'nothing'}"
                )
            there = self._there(pattern)
        except DataError:
            raise
        except Exception as error:  # every store has errors of its own
            raise DataError(self._unreachable(error)) from error
        near = difflib.get_close_matches(pattern, there, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"there: {', '.join(there[:10]) or 'nothing'}"
        if self._left_out:
            hint = f"{_some(self._left_out)} left out as hidden files or backup copies; name them if they are meant"
        raise DataError(f"data.{split}={pattern!r}: no file matches below data.root={self.url!r}; {hint}")

    def _matching(self, pattern: str) -> list[str]:
        """Matches without leftovers; of a folder that `save_to_disk` wrote, its Arrow files."""
        self._left_out: list[str] = []
        if not glob.has_magic(pattern):
            path = f"{self.path}/{pattern}".rstrip("/")
            if self.system.isfile(path):
                return [pattern]
            files = saved_files(self.system, path) if self.system.isdir(path) else None
            return [self._name(f"{path}/{name}") for name in files or ()]
        paths = self.system.glob(f"{glob.escape(self.path)}/{pattern}", detail=True)
        names = sorted(self._name(path) for path, info in paths.items() if info["type"] == "file")
        self._left_out = [name for name in names if left_out(name, pattern)]
        if self._left_out and (key := (self.url, pattern)) not in _logged:
            _logged.add(key)
            log.warning("%s: %s left out: hidden files, backup copies or the like", pattern, _some(self._left_out))
        return without_about(self.system, self.path, [name for name in names if name not in set(self._left_out)])

    def _there(self, pattern: str) -> list[str]:
        """What stands in the folder of the pattern, or, where there is none, in the root."""
        folder = re.split(r"[*?[]", pattern)[0].rpartition("/")[0]
        for path in (f"{self.path}/{folder}".rstrip("/"), self.path):
            if self.system.isdir(path):
                return sorted(self._name(info["name"]) for info in self.system.ls(path, detail=True))
        raise FileNotFoundError("there is no such folder")

    def _name(self, path: str) -> str:
        return str(path).removeprefix(self.path).lstrip("/")

    def normal(self, name: str) -> str:
        """The name without "./", "//" and "x/.."."""
        return name if not re.search(r"(^|/)\.{0,2}/|/\.{1,2}$", name) else posixpath.normpath(name)

    def prepared(self) -> dict[str, Any] | None:
        """What `prepare` wrote about this root; None for any other root."""
        try:
            if not self.system.isfile(f"{self.path}/{PREPARED}"):
                return None
            return cast("dict[str, Any]", json.loads(self.system.cat_file(f"{self.path}/{PREPARED}")))
        except Exception as error:  # every store has errors of its own; ValueError: not JSON
            raise DataError(self._unreachable(error)) from error

    def url_of(self, name: str) -> str:
        """The URL of a file below the root."""
        return str(self.system.unstrip_protocol(f"{self.path}/{name}"))

    def size_of(self, name: str) -> int | None:
        """Bytes as stored."""
        return cast("int | None", self.system.size(f"{self.path}/{name}"))

    def _unreachable(self, error: Exception) -> str:
        what = f"data.root={self.url!r} cannot be read: {type(error).__name__}: {error}"
        if "file" in protocols(self.system):
            return what
        return f"{what}. Without a connection, take a copy of the files on disk: data.root=PATH"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'are' if len(names) > 1 else 'is'}"


def _pattern_for(folder: str, names: list[str]) -> str:
    endings = [Path(name).suffix for name in names if Path(name).suffix in formats.EXTENSIONS]
    return f"{folder.rstrip('/')}/*{endings[0] if endings else ''}"


def protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def file_shards(root: Root, patterns: str | list[str], split: str) -> list[Shard]:
    """One shard per file that matches any of the patterns, sorted by name.

    Raises:
        DataError: a file is listed more than once, by one pattern or by several.
    """
    listed: dict[str, list[str]] = {}
    for pattern in _listed(patterns):
        for name in root.match(pattern, split):
            listed.setdefault(root.normal(name), []).append(pattern)
    if twice := {name: by for name, by in listed.items() if len(by) > 1}:
        name, by = next(iter(twice.items()))
        more = f" ({len(twice)} files are)" if len(twice) > 1 else ""
        raise DataError(
            f"data.{split}: {name} is listed {len(by)} times{more}, by {', '.join(map(repr, by))}. List a file once; "
            "to use rows more often, make copies of the file under other names"
        )
    return [_shard(root, (name,), (), split) for name in sorted(listed)]


def _listed(patterns: str | list[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _shard(root: Root, names: tuple[str, ...], roles: tuple[str, ...], split: str) -> Shard:
    extension = Path(formats.without_compression(names[0])).suffix.lower()
    kind = "text" if roles else formats.EXTENSIONS.get(extension)
    if kind is None or (kind in ("parquet", "arrow") and formats.without_compression(names[0]) != names[0]):
        allowed = ", ".join(formats.EXTENSIONS)
        raise DataError(
            f"data.{split}: {names[0]!r} has the unknown format {Path(names[0]).suffix!r}; known: {allowed}; all but "
            "parquet and arrow also with .gz or .zst; parallel text files are given as a mapping role: file"
        )
    sizes = [root.size_of(name) or 0 for name in names]
    roles = roles or (("text",) if kind == "text" else ())
    return Shard("+".join(names), tuple(root.url_of(name) for name in names), roles, kind, sum(sizes))


def parallel_shards(root: Root, patterns: dict[str, str], split: str) -> list[Shard]:
    if not patterns:
        raise UsageError(f"data.{split} is an empty mapping: give role: file, such as src: train.de")
    names = {role: root.match(pattern, split) for role, pattern in patterns.items()}
    for name in [name for found in names.values() for name in found]:
        known = formats.EXTENSIONS.get(Path(formats.without_compression(name)).suffix.lower(), "text")
        if known != "text":
            raise DataError(f"data.{split}: a mapping role: file is for parallel text files, {name!r} is {known}")
    return [_shard(root, pair, tuple(names), split) for pair in pairs(names, patterns, split)]


def prepared_shards(root: Root, prepared: dict[str, Any], data: DataConfig, split: str) -> list[Shard]:
    """The shards that `prepare` wrote for a split.

    Raises:
        UsageError: the recipe differs from the one that was prepared in a key that changes the rows.
    """
    now = data.model_dump(mode="json", include=set(PREPARED_KEYS))
    refuse_changed(root.url, prepared["keys"]["data"], now, "data.")
    return [Shard(name, (root.url_of(name),), (), "prepared", root.size_of(name)) for name in prepared["shards"][split]]


def refuse_changed(where: str, then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """UsageError that names every key whose value is not the one that the corpus was prepared with."""
    changed = [key for key in then if then[key] != now.get(key)]
    if changed:
        lines = "".join(f"\n  {prefix}{key}: {then[key]!r} -> {now.get(key)!r}" for key in changed)
        raise UsageError(f"{where} was prepared with another recipe:{lines}\nRun `rankzero prepare` again for this one")


def embedded_shards(root: str, patterns: Patterns, split: str) -> list[Shard]:
    """Shards of a generated corpus from a pattern such as "train?rows=24000&shards=8&seed=0"."""
    if isinstance(patterns, dict):
        raise UsageError(f"data.{split}: {root} takes a pattern such as 'train?rows=24000', not a mapping")
    shards = []
    for pattern in _listed(patterns):
        name, _, query = pattern.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        values = {"rows": "1000", "shards": "1", "seed": "0"} | given
        if name not in ("train", "validation", "test") or len(values) > 3 or not all(map(str.isdigit, values.values())):
            raise UsageError(
                f"data.{split}={pattern!r}: an embedded corpus takes train, validation or test and then whole numbers "
                "for rows, shards and seed: 'train?rows=24000&shards=8&seed=0'"
            )
        if values["shards"] == "0":
            raise UsageError(f"data.{split}={pattern!r}: shards=0, at least 1 is needed")
        for i in range(int(values["shards"])):
            url = f"{root}/{name}?{urlencode({**values, 'shard': i})}"
            shards.append(Shard(f"{name}-{i:05d}-of-{int(values['shards']):05d}", (url,), (), "embedded", None))
    return shards
