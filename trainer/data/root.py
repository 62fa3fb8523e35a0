"""The folder of a corpus on any fsspec file system: the files that a pattern matches.

Hidden files, backup copies and files of tools are left out. Of a folder that `datasets.save_to_disk` wrote, only the
Arrow files are data.
"""

from __future__ import annotations

import difflib
import glob
import json
import logging
import posixpath
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from trainer.data import formats
from trainer.data.formats import is_local
from trainer.data.remote import version_of
from trainer.errors import DataError, StoreError

log = logging.getLogger("rankzero")
_logged: set[tuple[str, ...]] = set()

PREPARED = "prepared.json"  # `prepare` writes it into its folder
_TOOL_FOLDERS = frozenset(
    ("CVS", "RCS", "SCCS", "_svn", "_darcs", "__MACOSX", "__pycache__", "_temporary", "lost+found")
)
_TOOL_FILES = frozenset(
    ("_SUCCESS", "_metadata", "_common_metadata", "Thumbs.db", "desktop.ini", "rankzero.schema.json")
)
_BACKUP = re.compile(
    r".*~\d*|#.*#|~\$.*|_(started|committed)_\d+|.*\.(bak|backup|old|orig|rej|sw[a-p]|tmp|temp|part|partial|crdownload"
    r"|incomplete|lock|crc|md5|sha1|sha256|rpmsave|save|provenance\.json)",
    re.IGNORECASE,
)
_WILDCARDS = re.compile(r"\[[^]]*\]|[*?]+")
_STATE = "state.json"  # of `save_to_disk`
_DESCRIPTIONS = frozenset((_STATE, "dataset_info.json", "dataset_dict.json"))


class Root:
    """A folder behind an fsspec URL."""

    def __init__(self, root: str):
        self.url = root if "://" in root else str(Path(root).expanduser().absolute())
        try:
            self.system, self.path = formats.located(self.url)
        except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: foo"
            raise DataError(f"data.root={root!r} cannot be opened: {error}") from None
        self.path = self.path.rstrip("/")
        self._listed: dict[str, dict[str, Any]] = {}  # by name, from listings

    def match(self, pattern: str, split: str) -> list[str]:
        """Return the names below the root of the files that match, sorted.

        Raises:
            DataError: no file matches, or the root cannot be reached.
        """
        try:
            names, skipped = self._matching(pattern)
            if names:
                return names
            if "[" in pattern and not skipped and self.system.isfile(self._path(pattern)):  # brackets of a name
                return [pattern]
            if self.system.isdir(self._path(pattern)):
                inside = self._list(self._path(pattern))
                known = [suffix for name in inside if (suffix := Path(name).suffix) in formats.EXTENSIONS]
                files = f"{pattern.rstrip('/')}/*{''.join(known[:1])}"
                raise DataError(
                    f"data.{split}={pattern!r} is a folder below data.root={self.url!r}: set a pattern of its files, "
                    f"such as {files!r}; there: {', '.join(inside[:5]) or 'nothing'}"
                )
            others = self._list_near(pattern)
        except (DataError, StoreError):
            raise
        except Exception as error:  # stores have different errors
            raise DataError(self._unreachable(error)) from error
        near = difflib.get_close_matches(pattern, others, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"there: {', '.join(others[:10]) or 'nothing'}"
        if skipped:
            hint = f"{_some(skipped)} left out as hidden files or backup copies; write their names to use them"
        raise DataError(f"data.{split}={pattern!r}: no file matches below data.root={self.url!r}; {hint}")

    def _matching(self, pattern: str) -> tuple[list[str], list[str]]:
        """Return the matches, and those that are left out as hidden files or backup copies."""
        if not glob.has_magic(pattern):
            path = self._path(pattern)
            if self.system.isfile(path):
                return [pattern], []
            files = _saved_files(self.system, path) if self.system.isdir(path) else None
            return [self._name(f"{path}/{name}") for name in files or ()], []
        paths = self.system.glob(f"{glob.escape(self.path)}/{pattern}", detail=True)
        listed = {self._name(path): info for path, info in paths.items() if info["type"] == "file"}
        self._listed |= listed
        names = sorted(listed)
        skipped = [name for name in names if _is_skipped(name, pattern)]
        if skipped and (key := (self.url, pattern)) not in _logged:
            _logged.add(key)
            log.warning("%s: %s left out: hidden files, backup copies or the like", pattern, _some(skipped))
        return self._without_descriptions(name for name in names if name not in set(skipped)), skipped

    def _without_descriptions(self, names: Iterable[str]) -> list[str]:
        """Leave out the descriptions and caches of data sets that `save_to_disk` wrote."""
        names, kept = list(names), []
        with_arrow = {name.rpartition("/")[0] for name in names if name.endswith(".arrow")}
        saved = {folder: _saved_files(self.system, self._path(folder)) for folder in with_arrow}
        for name in names:
            folder, _, base = name.rpartition("/")
            files = saved.get(folder)
            above = base == "dataset_dict.json" and any(other.startswith(f"{folder}/".lstrip("/")) for other in saved)
            if base in _DESCRIPTIONS and (files is not None or above):
                continue
            if files is None or base in files:
                kept.append(name)
        return kept

    def _list_near(self, pattern: str) -> list[str]:
        """Return the names in the folder of the pattern or, if there is no such folder, in the root."""
        folder = re.split(r"[*?[]", pattern)[0].rpartition("/")[0]
        for path in (self._path(folder), self.path):
            if self.system.isdir(path):
                return self._list(path)
        raise FileNotFoundError("there is no such folder")

    def _list(self, path: str) -> list[str]:
        return sorted(self._name(info["name"]) for info in self.system.ls(path, detail=True))

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}".rstrip("/")

    def _name(self, path: str) -> str:
        return str(path).removeprefix(self.path).lstrip("/")

    def prepared(self) -> dict[str, Any] | None:
        """Return what `prepare` wrote about this root, None for any other root."""
        try:
            content = self.read(PREPARED)
            return None if content is None else cast("dict[str, Any]", json.loads(content))
        except ValueError as error:  # not JSON
            raise DataError(self._unreachable(error)) from error

    def find(self, folder: str, endings: Sequence[str]) -> list[str]:
        """Return the names of all files below a folder with one of the endings, sorted, without hidden ones and copies.

        Raises:
            DataError: the root cannot be reached.
        """
        try:
            names = [self._name(path) for path in self.system.find(self._path(folder))]
        except Exception as error:  # stores have different errors
            raise DataError(self._unreachable(error)) from error
        suffixes = {name: Path(formats.without_compression(name)).suffix.lower() for name in names}
        return sorted(name for name, suffix in suffixes.items() if suffix in endings and not _is_skipped(name, "*"))

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        try:
            return bool(self.system.isfile(self._path(name)))
        except Exception as error:  # stores have different errors
            raise DataError(self._unreachable(error)) from error

    def children(self, kind: str, folder: str = "") -> list[str]:
        """Return the names in a folder that are not hidden, sorted. `kind`: file or directory."""
        entries = self.system.ls(self._path(folder), detail=True)
        names = (self._name(str(entry["name"]).rstrip("/")) for entry in entries if entry["type"] == kind)
        return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""
        try:
            return cast("bytes", self.system.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # stores have different errors
            raise DataError(self._unreachable(error)) from error

    def url_of(self, name: str) -> str:
        """Return the URL of a file below the root. It has host and account, which the path of a file system lacks."""
        if "::" not in self.url and "://" in self.url and self.system._get_kwargs_from_urls(self.url):
            return f"{self.url.rstrip('/')}/{name}"
        return str(self.system.unstrip_protocol(f"{self.path}/{name}"))

    def size_of(self, name: str) -> int | None:
        """Return the size of a file in bytes, as stored."""
        return cast("int | None", self._info(name).get("size"))

    def version_of(self, name: str) -> str | None:
        """Return what the store says about the content of a file: its etag or checksum, or when it was modified."""
        if is_local(self.system):  # a listing has the time of a link, not of its file
            return f"mtime {Path(self.path, name).stat().st_mtime_ns}"
        return version_of(self._info(name))

    def _info(self, name: str) -> dict[str, Any]:
        if name not in self._listed:
            self._listed[name] = dict(self.system.info(f"{self.path}/{name}"))
        return self._listed[name]

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, StoreError):
            raise error
        if isinstance(error, DataError):  # of another file system, which says how to go without a connection
            return str(error)
        message = f"data.root={self.url!r} cannot be read: {type(error).__name__}: {error}"
        if is_local(self.system):
            return message
        return f"{message}. Without a connection, use a copy of the files on disk: data.root=PATH"


def normal(name: str) -> str:
    """Return the name without "./", "//" and "x/.."."""
    return name if not re.search(r"(^|/)\.{0,2}/|/\.{1,2}$", name) else posixpath.normpath(name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'are' if len(names) > 1 else 'is'}"


def _is_skipped(name: str, pattern: str) -> bool:
    """Return whether a match is left out: a part of its path is hidden or a copy, and the pattern does not name it.

    "*.bak" and ".*" name what they match, "**" and "train*" do not.
    """
    named = [part for part in pattern.split("/") if _is_leftover(_WILDCARDS.sub("x", part))]
    parts = name.split("/")
    return any(_is_leftover(part) and not any(fnmatchcase(part, one) for one in named) for part in parts)


def _is_leftover(part: str) -> bool:
    """Return whether a file or folder of this name is hidden, a backup copy, or made by a tool."""
    hidden = part.startswith(".") and part not in (".", "..")
    return hidden or part in _TOOL_FOLDERS or part in _TOOL_FILES or _BACKUP.fullmatch(part) is not None


def _saved_files(system: Any, folder: str) -> list[str] | None:
    """Return the data files of a data set that `save_to_disk` wrote, in their order; None for any other folder."""
    if not system.isfile(f"{folder}/{_STATE}"):
        return None
    try:
        files = json.loads(system.cat_file(f"{folder}/{_STATE}"))["_data_files"]
        return [str(file["filename"]) for file in files]
    except (KeyError, TypeError, ValueError):  # a state.json of another program
        return None
