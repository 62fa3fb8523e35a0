"""Find the files of the splits from the path of one file or of a folder, by their names."""

from __future__ import annotations

import difflib
import glob
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data import formats
from trainer.data.hub_datasets import dataset_splits
from trainer.data.root import PREPARED, Root
from trainer.errors import DataError, UsageError
from trainer.recipe.datasets import place_of
from trainer.recipe.sections import Patterns
from trainer.redaction import redacted

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLITS = {word: split for split, words in WORDS.items() for word in words}
_LANGUAGE = re.compile(r"(?P<stem>.+)\.(?P<side>(?!txt)[a-z]{2,3}|src|trg|tgt|source|target)(\.txt)?", re.IGNORECASE)
SOURCES, TARGETS = ("src", "source"), ("trg", "tgt", "target", "en")
SHOWN = 6
MANY_FILES = 100  # kinds of names above which the names are hardly those of classes
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_DATASET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", re.ASCII)
_DATASET_URL = re.compile(r"hf://datasets/[\w.-]+/[\w.-]+(:[\w.-]+)?/?", re.ASCII)
log = logging.getLogger("rankzero")
_FORMATS = f"known are {', '.join(formats.EXTENSIONS)}, and pairs of text files such as train.de and train.en"


@dataclass(frozen=True)
class SplitFiles:
    """Files of the splits below a folder.

    Attributes:
        root: the folder as the user names it.
        train: a pattern, or role: file for parallel text files.
        validation: the same; None if there is none.
        test: the same; None if there is none.
        languages: the sides of parallel text files by role, such as {"src": "de", "trg": "en"}.
        dataset: name[:configuration] of a data set of the Hub, whose splits the others name.
    """

    root: str
    train: Patterns
    validation: Patterns | None = None
    test: Patterns | None = None
    languages: Mapping[str, str] | None = None
    dataset: str | None = None

    @property
    def place(self) -> dict[str, str]:
        """The key of `data` that says where the files are."""
        return {"dataset": self.dataset} if self.dataset else {"root": self.root}


def find_splits(path: str) -> SplitFiles:
    """Return the files of the splits of a corpus.

    Args:
        path: a file of training rows, whose neighbors may be the other splits, or a folder. Both may be an fsspec URL.
            Or `owner/name[:configuration]` of a data set of the Hub.

    Raises:
        UsageError: there is no such file, or the folder has several corpora.
        DataError: a file of an unknown format, or a store that cannot be reached.
    """
    if _DATASET_URL.fullmatch(path):
        return _of_dataset(path.removeprefix("hf://datasets/").rstrip("/"))
    if "://" in path:
        return _of_url(path)
    place = Path(path).expanduser()
    if place.is_dir():
        return _of_folder(path)
    if place.exists():
        return _of_file(str(Path(path).parent), place.name, path)
    is_name = _DATASET.fullmatch(path) is not None and not place.parent.is_dir() and not _is_known(path)
    if is_name or (":" in path and Path(path.rpartition(":")[0]).is_dir()):
        return _of_dataset(path)
    there = sorted(p.name for p in place.parent.glob("*")) if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, there, n=3)
    hint = f"nearest: {', '.join(near)}" if near else f"there: {', '.join(there[:SHOWN]) or 'nothing'}"
    raise UsageError(f"init: {path} does not exist; {hint}. A data set of the Hub is named owner/name")


def _of_url(url: str) -> SplitFiles:
    """Return the splits of a URL. A name with a known extension is a file, any other one is a folder."""
    if "?" in url or "#" in url:
        raise UsageError(
            f"init: {redacted(url)} has a query, and files are named by their path: download the file and name it, "
            "or name a URL without ? and #"
        )
    folder, _, name = url.rstrip("/").rpartition("/")
    if _is_known(name) or (_sides(name) is not None and not url.endswith("/") and "://" in folder):
        if not Root(folder).has(name):
            raise DataError(f"init: {redacted(url)} cannot be read: there is no such file, or its store refuses it")
        return _of_file(folder, name, url)
    return _of_folder(url)


def _of_dataset(name: str) -> SplitFiles:
    try:
        splits = dataset_splits(name)
    except DataError as error:
        raise DataError(f"init: {name} is no file or folder here, and no data set that can be read: {error}") from error
    first = {_split_of(split): split for split in reversed(splits)}
    train = first.get("train", splits[0])
    others = {split: named for split, named in first.items() if named != train}
    return SplitFiles(place_of(name)[0], train, others.get("validation"), others.get("test"), dataset=name)


def _of_file(root: str, name: str, path: str) -> SplitFiles:
    """Return the splits of a file of training rows and of its neighbors, as far as its store lists them."""
    try:
        names = Root(root).children("file")
    except DataError:
        raise
    except Exception as error:  # stores have different errors, and a web server may list nothing
        log.info("init: the neighbors of %s are not listed (%s)", name, type(error).__name__)
        names = []
    names = names if name in names else [name]
    if (pair := _sides(name)) is not None and not _is_known(name):
        return _parallel(root, names, pair[0], name)
    if not _is_known(name):
        suffix = Path(name).suffix
        fix = ". Save the sheet as CSV (UTF-8)" if suffix.lower() in SHEETS else ""
        raise DataError(f"init: {redacted(path)} has the unknown format {suffix!r}{fix}; {_FORMATS}")
    return _around(root, name, names)


def _of_folder(path: str) -> SplitFiles:
    root = Root(path)
    if root.has(PREPARED):
        raise UsageError(f"init: {path} was written by `rankzero prepare`; name the folder of the files it was made of")
    if root.has("state.json"):
        return SplitFiles(path, ".")
    if root.has("dataset_dict.json"):
        saved = [name for name in root.children("directory") if root.has(f"{name}/state.json")]
        folders = {_SPLITS.get(name): name for name in saved}
        if "train" in folders:
            return SplitFiles(path, folders["train"], folders.get("validation"), folders.get("test"))
    names = root.match("**", "train")
    known = [name for name in names if _is_known(name) and Path(name).stem.lower() not in ("readme", "license")]
    if known:
        return _of_names(path, known)
    stems = dict.fromkeys(pair[0] for name in names if (pair := _sides(name)))
    train = [stem for stem in stems if _split_of(stem) == "train"] or [*stems]
    if len(train) == 1:
        return _parallel(path, names, train[0])
    raise DataError(f"init: {path} has no files of rows ({', '.join(names[:SHOWN]) or 'no files'}); {_FORMATS}")


def _of_names(root: str, names: Sequence[str]) -> SplitFiles:
    """Return the splits of a folder. Files that differ by numbers only are parts of one split."""
    kept = [name for name in names if _split_of(name) == "train"]
    kept = kept or [name for name in names if _split_of(name) is None] or list(names)
    groups: dict[str, list[str]] = {}
    for name in kept:
        groups.setdefault(_form(name), []).append(name)
    if len(groups) > 1:
        first = [files[0] for files in groups.values()]
        raise UsageError(
            f"init: {root} has several files that could be the training rows: {', '.join(first[:SHOWN])}; name one of "
            f"them: rankzero init {root.rstrip('/')}/{first[0]}{_by_class(groups)}"
        )
    return _around(root, kept[0], names, kept)


def _by_class(groups: Mapping[str, Sequence[str]]) -> str:
    """Return a hint if text files may be grouped by class: pos/1.txt and neg/1.txt, or pos.txt and neg.txt."""
    files = [name for of in groups.values() for name in of]
    if len(groups) > MANY_FILES or any(_suffix(name) != ".txt" for name in files):
        return ""
    return ". If a name is the label of its texts, write one CSV file with the columns text and label instead"


def _around(root: str, name: str, names: Sequence[str], parts: Sequence[str] = ()) -> SplitFiles:
    """Return a file of training rows, or its parts, with the files of the other splits."""
    other: dict[str, list[str]] = {}
    for split in ("validation", "test"):
        same = [one for one in names if _split_of(one) == split and _form(one, split) == _form(name)]
        plain = [one for one in names if _split_of(one) == split and _suffix(one) == _suffix(name)]
        if _split_of(name) is None and len(plain) == 1:
            same = plain
        other[split] = [one for one in same if one != name]
    pattern = {split: _pattern(files) for split, files in other.items()}
    return SplitFiles(root, _pattern(parts or [name]) or name, pattern["validation"], pattern["test"])


def _form(name: str, split: str | None = None) -> str:
    """Return a name with "*" for the word of its split and "#" for numbers."""
    split = split or _split_of(name)
    words = "|".join(sorted(WORDS.get(split or "", ("(?!)",)), key=len, reverse=True))
    bare = formats.without_compression(name)
    return re.sub(r"\d+", "#", re.sub(rf"(?<![A-Za-z])({words})(?![A-Za-z])", "*", bare, flags=re.IGNORECASE))


def _suffix(name: str) -> str:
    return Path(formats.without_compression(name)).suffix.lower()


def _pattern(files: Sequence[str]) -> str | None:
    if len(files) < 2:
        return files[0] if files else None
    return re.sub(r"\d+", "*", glob.escape(files[0]))


def _split_of(name: str) -> str | None:
    """Return the split that a path names: its file name first, then its folders."""
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _is_known(name: str) -> bool:
    return _suffix(name) in formats.EXTENSIONS and _sides_of_text(name) is None


def _sides_of_text(name: str) -> tuple[str, str] | None:
    return _sides(name) if formats.without_compression(name).lower().endswith(".txt") else None


def _sides(name: str) -> tuple[str, str] | None:
    """Return stem and language of one of a pair of text files: ("train", "de") of train.de.gz."""
    bare = formats.without_compression(name)
    match = _LANGUAGE.fullmatch(bare)
    if match is None or (_suffix(name) in formats.EXTENSIONS and not bare.lower().endswith(".txt")):
        return None
    return match["stem"], match["side"]


def _parallel(root: str, names: Iterable[str], stem: str, source: str | None = None) -> SplitFiles:
    by_stem: dict[str, dict[str, str]] = {}
    for name in names:
        if (pair := _sides(name)) is not None:
            by_stem.setdefault(pair[0], {})[pair[1]] = name
    sides = by_stem.get(stem, {})
    if len(sides) != 2:
        files = ", ".join(sides.values()) or "no file"
        raise DataError(
            f"init: {root} has {len(sides)} text files {stem}.LANGUAGE ({files}), and a pair such as train.de and "
            "train.en is needed. Put other files into another folder"
        )
    first, second = sorted(sides, key=lambda side: _rank(side, sides[side] == source))
    both = {
        split: {"src": of[first], "trg": of[second]}
        for other, of in by_stem.items()
        if (split := _split_of(other)) and {first, second} <= of.keys() and _form(other, split) == _form(stem)
    }
    train: Patterns = {"src": sides[first], "trg": sides[second]}
    return SplitFiles(root, train, both.get("validation"), both.get("test"), {"src": first, "trg": second})


def _rank(side: str, is_named: bool) -> tuple[bool, bool, bool, str]:
    """Order the sides: the file that the user names, then src, and English last."""
    return not is_named, side.lower() not in SOURCES, side.lower() in TARGETS, side
