"""Files of a data set of the Hub by configuration and split: `data.dataset: name[:config]`, and its folders on disk.

Configurations and splits are those of the `configs` in README.md or, without it, those that the names of folders and
files say. Parquet files are preferred. Scripts are never run: of a data set that is one, the Hub's own conversion to
Parquet is read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.formats import EXTENSIONS, without_compression
from trainer.data.root import Root
from trainer.errors import DataError, UsageError
from trainer.files import read_json
from trainer.recipe import parse_yaml
from trainer.recipe.sections import DataConfig, Patterns
from trainer.rundir import RunDir

if TYPE_CHECKING:
    from trainer.recipe import Recipe

CONVERTED = "refs/convert/parquet"  # the branch of the Hub's conversion
COMMIT = re.compile(r"[0-9a-f]{40}")
# Files about a data set that are no rows of it. The library `datasets` leaves them out, too.
_ABOUT = frozenset(("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
_FRONT_MATTER = re.compile(rb"---\r?\n(.*?)\r?\n---", re.DOTALL)
_NUMBERED = re.compile(r"(?:^|/)(\w+)(?:-\d{5}-of-\d{5}[^/]*|/(?:part\.)?\d{4,5}\.parquet)$")
_WORDS = {"train": "train|training", "validation": "validation|valid|val|dev", "test": "test|testing|eval|evaluation"}
_NAMED = {split: re.compile(rf"(?:^|[/._\- 0-9])(?:{words})(?=[/._\- 0-9]|$)", re.I) for split, words in _WORDS.items()}


def pinned(data: DataConfig, revision: str | None = None) -> DataConfig:
    """Return `data` with the commit of its data set as `revision`. Other data and folders are returned as they are.

    Args:
        data: the section of the recipe.
        revision: the commit of an earlier start of the run, which `data` does not name.

    Raises:
        DataError: the data set, its revision or its configuration cannot be found.
    """
    if data.dataset is None or not data.root.startswith("hf://") or COMMIT.fullmatch(data.revision or ""):
        return data
    return data.model_copy(update={"revision": revision or _commit(data.root, data.revision, data.config)})


def pin_dataset(run: RunDir, recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of its data set: that of the first start, unless `data.revision` is set.

    Raises:
        DataError: the data set cannot be found.
    """
    earlier = (read_json(run.manifest) or {}).get("dataset") or {}
    same = earlier.get("name") == recipe.data.dataset and recipe.data.revision is None
    return recipe.model_copy(update={"data": pinned(recipe.data, earlier.get("revision") if same else None)})


def dataset_files(data: DataConfig, patterns: Patterns, split: str) -> tuple[Root, list[str]]:
    """Return the files of one or several splits of a data set, and the root that they are below.

    Args:
        data: the section of the recipe.
        patterns: the names of splits of the data set.
        split: of the recipe, for messages.

    Raises:
        DataError: no such configuration, split or file.
        UsageError: `patterns` is a mapping.
    """
    if isinstance(patterns, dict):
        raise UsageError(f"data.{split}: data.dataset takes the name of a split, such as 'train', not a mapping")
    data = pinned(data)
    root = Root(_place(data.root, data.revision)[0] if data.root.startswith("hf://") else data.root)
    splits, names = _splits(root, data.config), []
    for name in [patterns] if isinstance(patterns, str) else patterns:
        if name not in splits:
            config = f" ({data.config})" if data.config else ""
            raise DataError(
                f"data.{split}={name!r}: the data set {data.dataset}{config} has no such split; it has "
                f"{', '.join(splits)}. Set data.{split} to one of them, or to null"
            )
        names += [file for pattern in splits[name] for file in root.match(pattern, split)]
    return root, list(dict.fromkeys(names))


def dataset_splits(dataset: str) -> list[str]:
    """Return the names of the splits of a data set, `name[:configuration]`.

    Raises:
        DataError: the data set or its configuration cannot be found.
    """
    data = pinned(DataConfig(dataset=dataset))  # type: ignore[call-arg]  # root and train follow from it
    root = Root(_place(data.root, data.revision)[0] if data.root.startswith("hf://") else data.root)
    return list(_splits(root, data.config))


@functools.cache
def _commit(root: str, revision: str | None, config: str | None) -> str:
    """Return the commit of a revision that has files of the configuration. Scripts have them on their own branch."""
    first: DataError | None = None
    for branch in (revision,) if revision else ("main", CONVERTED):
        try:
            place, commit = _place(root, branch)
            _splits(Root(place), config)
        except DataError as error:
            first = first or error
        else:
            return commit
    assert first is not None
    raise first


@functools.cache
def _place(root: str, revision: str | None) -> tuple[str, str]:
    """Return where the files of a revision are, and its commit. Without a connection: the cache of huggingface_hub."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = root.removeprefix("hf://datasets/")
    try:
        commit = str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
        return f"hf://datasets/{name}@{commit}", commit
    except Exception as error:  # of the connection, or of the Hub's answer
        try:
            folder = huggingface_hub.snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True
            )
        except (LocalEntryNotFoundError, ValueError, OSError):
            raise DataError(
                f"data.dataset: {name}, revision {revision or 'main'}, cannot be read: {type(error).__name__}: "
                f"{str(error).strip()[:300]}. Without a connection, fetch it into the cache first: `hf download "
                f"--repo-type dataset {name}`"
            ) from error
        return folder, Path(folder).name


def _splits(root: Root, config: str | None) -> dict[str, list[str]]:
    """Return split -> patterns of its files.

    Raises:
        DataError: no such configuration, no files, or a README.md that cannot be read.
    """
    configs, folder = _configs(root), config or ""
    if configs:
        defaults = [name for name, entry in configs.items() if entry.get("default") or name == "default"]
        chosen = config or (defaults or list(configs))[0] if len(configs) == 1 or defaults else config
        if chosen not in configs:
            named = f"has no configuration {chosen!r}" if chosen else "has several configurations"
            raise DataError(
                f"data.dataset: {root.url} {named}; set data.dataset=NAME:CONFIG to one of {_listed(configs)}"
            )
        folder = str(configs[chosen].get("data_dir") or "").strip("/")
        if files := configs[chosen].get("data_files"):
            return _patterns(files, f"{folder}/" if folder else "", root)
    names = root.find(folder, [kind for kind in EXTENSIONS if kind != ".arrow"])
    names = [name for name in names if name.rpartition("/")[2] not in _ABOUT]
    if not names:
        there = sorted({name.split("/")[0] for name in root.find("", [*EXTENSIONS]) if "/" in name})
        raise DataError(
            f"data.dataset: {root.url} has no files in a known format{f' in {folder}/' if folder else ''}; "
            f"configurations are folders of Parquet, JSON, CSV or text files; folders there: {_listed(there)}"
        )
    names = [name for name in names if name.endswith(".parquet")] or names
    splits: dict[str, list[str]] = {}
    for name in names:
        inner = name.removeprefix(f"{folder}/")
        match = _NUMBERED.search(without_compression(inner))
        by_word = (split for split, words in _NAMED.items() if words.search(inner))
        splits.setdefault(match[1] if match else next(by_word, "train"), []).append(name)
    return splits


def _configs(root: Root) -> dict[str, dict[str, Any]]:
    """Return the entries of `configs` in README.md by name."""
    match = _FRONT_MATTER.match(root.read("README.md") or b"")
    try:
        card = parse_yaml(match[1].decode(), "README.md") if match else None
        return {str(entry["config_name"]): entry for entry in (card or {}).get("configs") or ()}
    except (UsageError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"data.dataset: README.md of {root.url} has no valid `configs`: {error}") from None


def _patterns(files: Any, folder: str, root: Root) -> dict[str, list[str]]:
    """Return split -> patterns from `data_files` of a configuration: a pattern, a list or a mapping by split."""
    if isinstance(files, dict):
        files = [{"split": split, "path": paths} for split, paths in files.items()]
    splits: dict[str, list[str]] = {}
    for entry in [files] if isinstance(files, str) else files:
        split, paths = (str(entry["split"]), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        for path in [paths] if isinstance(paths, str) else paths:
            if "://" in path or path.startswith("/") or ".." in path.split("/"):
                raise DataError(f"data.dataset: README.md of {root.url} names {path!r}, which is not below it")
            splits.setdefault(split, []).append(f"{folder}{path.removeprefix('./')}")
    return splits


def _listed(names: Iterable[str]) -> str:
    shown: Sequence[str] = list(names)
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") or "none"
