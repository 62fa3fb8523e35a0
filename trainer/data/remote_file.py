"""A remote file, read in blocks through the block cache, and ahead of a reader that goes on."""

from __future__ import annotations

import io
import weakref
from collections import OrderedDict, deque
from concurrent.futures import Future
from functools import partial
from typing import Any

from trainer.data.block_cache import block_cache
from trainer.data.remote import Truncated, check_version, in_background, recheck, retried

BLOCK = 1 << 18  # bytes of a block of the cache; blocks that follow each other are fetched at once
MOST = 8 << 20  # bytes of one request
WHOLE = 64 << 20  # bytes of the largest file that is read from a store that sends whole files only
KEPT_PIECES, KEPT_BYTES = 16, 1 << 18  # of a file that is looked at: parts, and bytes of one that is kept
AHEAD, AHEAD_OF_ALL = 32 << 20, 128 << 20  # bytes that are read ahead for one file, and for all open files of a process

_open: weakref.WeakSet[RemoteFile] = weakref.WeakSet()


class RemoteFile(io.RawIOBase):
    """A remote file. Its blocks are of one version, or an error is raised.

    Args:
        system: the file system that it is in.
        path: its path there.
        url: for messages.
        size: in bytes.
        key: names its content in the block cache; None: it is not cached.
        piece: for a look at a file, bytes that are fetched at once, and not ahead. The version is not requested again:
            the file is compared with the listing when it is read. None: blocks, and ahead.
    """

    def __init__(self, system: Any, path: str, url: str, size: int, key: str | None, piece: int | None) -> None:
        super().__init__()
        self._system, self._path, self._url, self._size, self._key = system, path, url, size, key
        self._piece, self._pieces = piece, OrderedDict[int, bytes]()  # by their place
        # cat_file of the Hub opens a file, which would read megabytes ahead for each request
        self._options = {"cache_type": "none"} if system.protocol == "hf" else {}
        self._position = 0
        self._chunk: tuple[int, bytes] = (0, b"")  # the last one that was read from, and its place
        self._ahead: deque[tuple[int, int, Future[bytes]]] = deque()
        self._window = BLOCK
        self._whole: bytes | None = None  # of a store that sends whole files only
        _open.add(self)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        if self._piece:
            data = self._piece_at(self._position, max(self._piece, min(wanted, MOST)))[:wanted]
        else:
            start, chunk = self._chunk_at(self._position, wanted)
            data = chunk[self._position - start :][:wanted]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._ahead.clear()
        self._pieces.clear()
        self._chunk = (0, b"")
        _open.discard(self)
        super().close()

    def _piece_at(self, position: int, size: int) -> bytes:
        """Return what follows a position. The last parts are kept: the reader of a Parquet file goes back and forth."""
        for start, data in self._pieces.items():
            if start <= position < start + len(data):
                self._pieces.move_to_end(start)
                return data[position - start :]
        data = self._fetch(position, min(position + size, self._size))
        if len(data) <= KEPT_BYTES:
            self._pieces[position] = data
            if len(self._pieces) > KEPT_PIECES:
                self._pieces.popitem(last=False)
        return data

    def _chunk_at(self, position: int, wanted: int) -> tuple[int, bytes]:
        """Return the chunk that holds a position, and its place. A reader that goes on gets larger ones, ahead."""
        start, data = self._chunk
        if start <= position < start + len(data):
            return self._chunk
        goes_on = bool(data) and position == start + len(data)
        while self._ahead and self._ahead[0][1] <= position:
            self._ahead.popleft()
        if self._ahead and self._ahead[0][0] <= position:
            start, _, future = self._ahead.popleft()
            data = future.result()
        else:
            self._ahead.clear()
            self._window = min(2 * self._window, MOST) if goes_on else BLOCK
            start = position // BLOCK * BLOCK
            data = self._load(start, self._end(max(start + self._window, min(position + wanted, start + MOST))))
        self._chunk = (start, data)
        if goes_on:
            self._read_ahead(start + len(data))
        return self._chunk

    def _end(self, position: int) -> int:
        return min(-(-position // BLOCK) * BLOCK, self._size)

    def _read_ahead(self, position: int) -> None:
        """Fetch what follows in the background."""
        if self._ahead:
            position = self._ahead[-1][1]
        room = max(BLOCK, min(AHEAD, AHEAD_OF_ALL // max(1, len(_open))))
        room -= sum(end - start for start, end, _ in self._ahead)
        while position < self._size and room > 0:
            self._window = min(2 * self._window, MOST)
            end = self._end(position + min(self._window, room))
            self._ahead.append((position, end, in_background(partial(self._load, position, end))))
            room -= end - position
            position = end

    def _load(self, start: int, end: int) -> bytes:
        """Return a part of the file from the start of a block, from the cache as far as it is there."""
        cache, key = block_cache(), self._key
        if key is None:
            return self._fetch(start, end)
        blocks = range(start // BLOCK, -(-end // BLOCK))
        found = {block: cache.get(key, block) for block in blocks}
        if any(data is None for data in found.values()):
            with cache.claimed(key, blocks[0]):
                found = {block: data if data is not None else cache.get(key, block) for block, data in found.items()}
                for first, last in _runs([block for block, data in found.items() if data is None]):
                    fetched = self._fetch(first * BLOCK, min((last + 1) * BLOCK, self._size))
                    for block in range(first, last + 1):
                        found[block] = fetched[(block - first) * BLOCK :][:BLOCK]
                        cache.put(key, block, found[block] or b"")
        return b"".join(data or b"" for data in found.values())

    def _fetch(self, start: int, end: int) -> bytes:
        """Return a part of the file from its store.

        Raises:
            DataError: the file has changed since this run began.
            StoreError: the store has not answered for too long.
        """

        if self._whole is not None:
            return self._whole[start:end]

        def attempt() -> bytes:
            data: bytes = self._system.cat_file(self._path, start=start, end=end, **self._options)
            if len(data) == self._size > end - start:
                if self._size > WHOLE:
                    raise OSError(
                        f"its store sends whole files only, and this one has {self._size:,} bytes: copy it to a disk, "
                        "or use a server that answers requests for a part of a file"
                    )
                self._whole, data = data, data[start:end]
            if len(data) != end - start:
                self._system.invalidate_cache(self._system._parent(self._path))
                check_version(self._system, self._url, self._system.info(self._path))
                raise Truncated(f"{len(data):,} bytes came instead of {end - start:,}")
            return data

        data = retried(self._system, f"{self._url}, bytes {start:,} to {end:,}", attempt)
        if not self._piece:
            recheck(self._system, self._path, self._url)
        return data


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Return the first and last of each series of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
