"""Blocks of remote files on a local disk, for later epochs and for the other ranks of the machine.

RANKZERO_CACHE names the folder and RANKZERO_CACHE_GB its size; 0 turns it off. The blocks that were used least recently
are deleted first. A block is written under another name and renamed, and has its digest, so that processes that are
killed, or that write the same block, do no harm. The cache of fsspec has no limit and is for one process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from trainer.data.remote import environment_number

log = logging.getLogger("rankzero")

FOLDER, SIZE = "RANKZERO_CACHE", "RANKZERO_CACHE_GB"  # environment variables
DEFAULT_GB = 10.0
DIGEST = 16  # bytes at the end of each file of the cache
FULL_AT = 0.9  # of the limit: what is left after blocks were deleted
PART_SCANNED = 0.01  # of the limit: bytes that a process writes before it adds up the files again
LOCKS = 256


class BlockCache:
    """The cache of this machine.

    Args:
        folder: where blocks are.
        limit: bytes of all blocks. Each process may exceed it by PART_SCANNED until it deletes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._unscanned: int | None = None  # bytes written since this process added up the files; None: never
        self._usable = limit > 0

    def get(self, key: str, block: int) -> bytes | None:
        """Return a block, or None if the cache does not have it."""
        if not self._usable:
            return None
        path = self._path(key, block)
        try:
            content = path.read_bytes()
            if content[-DIGEST:] != _digest(content[:-DIGEST]):
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return content[:-DIGEST]

    def put(self, key: str, block: int, data: bytes) -> None:
        """Store a block. A disk that is full or not writable turns the cache off, with a warning."""
        if not self._usable:
            return
        path = self._path(key, block)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with open(temporary, "wb", opener=_private) as file:
                    file.write(data + _digest(data))
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._make_room(len(data))
        except OSError as error:
            self._usable = False
            log.warning(
                "%s cannot keep blocks of remote files (%s): they are fetched again when they are needed. Free space, "
                "or set %s to another folder",
                *(self._folder, error.strerror or error, FOLDER),
            )

    @contextlib.contextmanager
    def claimed(self, key: str, block: int) -> Iterator[None]:
        """Let one process of the machine fetch a block, while others wait and then find it in the cache."""
        if not self._usable:
            yield
            return
        number = int.from_bytes(hashlib.blake2b(f"{key} {block}".encode(), digest_size=2).digest(), "big") % LOCKS
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a file system without locks
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                file = held.enter_context(open(self._folder / f"lock-{number}", "wb", opener=_private))
                fcntl.flock(file, fcntl.LOCK_EX)
                held.callback(fcntl.flock, file, fcntl.LOCK_UN)
            yield

    def _path(self, key: str, block: int) -> Path:
        name = hashlib.blake2b(f"{key} {block}".encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _make_room(self, written: int) -> None:
        """Delete the blocks that were used least recently, if all together are more than the limit."""
        if self._unscanned is not None:
            self._unscanned += written
            if self._unscanned < PART_SCANNED * self._limit:
                return
        self._unscanned = 0
        files = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):  # another process has deleted it
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= self._limit:
            return
        for _, size, path in sorted(files, key=lambda file: file[0]):
            if total <= FULL_AT * self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def block_cache() -> BlockCache:
    """Return the cache that the environment describes.

    Raises:
        UsageError: RANKZERO_CACHE_GB is not a number.
    """
    folder = os.environ.get(FOLDER)
    limit = environment_number(SIZE, DEFAULT_GB, "a number of gigabytes is needed, or 0 for no cache")
    place = (folder, limit)
    if place not in _caches:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rankzero" / "blocks"
        _caches[place] = BlockCache(Path(folder).expanduser() if folder else home, int(limit * 1e9))
    return _caches[place]


_caches: dict[tuple[str | None, float], BlockCache] = {}


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def _private(path: str, flags: int) -> int:
    """Open a file that only this user can read: the rows may be confidential."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
