"""A remote file system, as the reading of data uses it."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

from trainer.data.remote import check_version, describe, identity, recheck, retried, version_of
from trainer.data.remote_file import BLOCK, RemoteFile

RETRIED = frozenset(("isdir", "ls", "find", "cat_file", "checksum"))
IN_PROCESS = frozenset(("memory", "data"))  # protocols whose files are of this process: never in the block cache


class Store:
    """A remote file system of fsspec whose calls are retried and whose files are read in blocks (`RemoteFile`)."""

    def __init__(self, system: Any) -> None:
        self.system = system

    def __getattr__(self, name: str) -> Any:
        if name == "system":  # of a copy that is being made
            raise AttributeError(name)
        value = getattr(self.system, name)
        if name not in RETRIED:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return retried(self.system, self._url(args), partial(value, *args, **kwargs))

        return call

    def _url(self, args: tuple[Any, ...]) -> str:
        return str(self.system.unstrip_protocol(args[0])) if args and isinstance(args[0], str) else "the store"

    def info(self, path: str) -> dict[str, Any]:
        """Return what the store says about a file or folder, which is compared with what it said before.

        Raises:
            DataError: the file has changed since this run began.
        """
        return describe(self.system, path, self._url((path,)))

    def glob(self, pattern: str, *, detail: bool = False) -> Any:
        """Return the paths that match, with `detail` what the store says about each."""
        listed = retried(self.system, self._url((pattern,)), partial(self.system.glob, pattern, detail=True))
        for path, info in listed.items():
            if info["type"] == "file":
                check_version(self.system, self._url((path,)), info)
        return listed if detail else list(listed)

    def isfile(self, path: str) -> bool:
        """Return whether there is such a file. fsspec's own says no after any error, too."""
        try:
            return bool(self.info(path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes."""
        size = self.info(path).get("size")
        return None if size is None else int(size)

    def open(self, path: str, mode: str = "rb", block_size: int | None = None) -> Any:
        """Open a file for reading.

        Args:
            path: in the store.
            mode: rb.
            block_size: bytes that are read at once, and no more: for a look at a file, as the listing has it. None:
                blocks, read ahead.
        """
        return self._open(path, block_size)

    def open_uncached(self, path: str) -> Any:
        """Open a file that is read once: ahead, but not through the block cache."""
        return self._open(path, None, cached=False)

    def _open(self, path: str, block_size: int | None, cached: bool = True) -> Any:
        url = self._url((path,))
        info = recheck(self.system, path, url, None if block_size is None else float("inf"))
        size, version = info.get("size"), version_of(info)
        if size is None or info.get("partial") is False:  # of a web server that sends whole files only
            return retried(self.system, url, partial(self.system.open, path, "rb"))
        protocols = {self.system.protocol} if isinstance(self.system.protocol, str) else set(self.system.protocol)
        cached = cached and version is not None and not protocols & IN_PROCESS
        key = f"{identity(self.system, url)} {size} {version}" if cached else None
        return io.BufferedReader(RemoteFile(self.system, path, url, int(size), key, block_size), block_size or BLOCK)
