"""A remote store of files of any size that holds one block of each: it counts requests and bytes.

Registered with fsspec as `counted://`. A listing is a request for each 1,000 files and brings sizes and etags. A read
of a range is a request, and so is the HEAD before a file is opened.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

PAGE = 1000  # files of one request for a listing
PROTOCOL = "counted"


@dataclass(frozen=True)
class Repeated:
    """A file that is a block over and over, cut at its size. The block may be a mapped file."""

    block: bytes | mmap.mmap = field(repr=False)
    size: int
    etag: str = "1"

    def part(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        parts, end = [], min(end, self.size)
        while start < end:
            at = start % len(self.block)
            parts.append(self.block[at : at + end - start])
            start += len(parts[-1])
        return b"".join(parts)


@dataclass
class Counts:
    """Requests by kind, and bytes of bodies."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def total(self) -> int:
        return self.requests.total()


class CountingStore(AbstractFileSystem):
    """The store. All instances share the files and the counts."""

    protocol = PROTOCOL
    files: ClassVar[dict[str, Repeated]] = {}
    counts: ClassVar[Counts] = Counts()
    seconds = 0.0  # that a request takes
    _lock = threading.Lock()

    @classmethod
    def fill(cls, files: dict[str, Repeated], seconds: float = 0.0) -> None:
        """Replace all files (path without protocol -> content) and reset the counts."""
        cls.files, cls.seconds = files, seconds
        cls.reset()
        fsspec.register_implementation(PROTOCOL, cls, clobber=True)

    @classmethod
    def reset(cls) -> Counts:
        """Return the counts and begin at zero."""
        counts, cls.counts = cls.counts, Counts()
        return counts

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path).rstrip("/")
        below = [name for name in self.files if name.startswith(f"{path}/")]
        self._count("list", max(1, -(-len(below) // PAGE)))
        if not below:
            raise FileNotFoundError(path)
        entries = [self._entry(name) for name in below if "/" not in name.removeprefix(f"{path}/")]
        folders = {name.removeprefix(f"{path}/").partition("/")[0] for name in below} - {
            entry["name"].rpartition("/")[2] for entry in entries
        }
        entries += [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in folders]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path).rstrip("/")
        self._count("head")
        if path in self.files:
            return self._entry(path)
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _entry(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": self.files[path].size, "type": "file", "ETag": self.files[path].etag}

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        return CountedFile(self, path, mode, block_size or "default", **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        if path not in self.files:
            self._count("head")
            raise FileNotFoundError(path)
        return self.fetch(path, start or 0, self.files[path].size if end is None else end)

    def fetch(self, path: str, start: int, end: int) -> bytes:
        content = self.files[path].part(start, end)
        self._count("get", size=len(content))
        return content

    def _count(self, kind: str, number: int = 1, size: int = 0) -> None:
        with self._lock:
            self.counts.requests[kind] += number
            self.counts.bytes += size
        if self.seconds:
            time.sleep(self.seconds * number)


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.fetch(self.path, start, end))
