"""The folder of a mirror, behind any fsspec URL. Calls are retried."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data import formats
from trainer.data.remote import ATTEMPT_SECONDS, retried
from trainer.engine import multipart
from trainer.errors import UsageError
from trainer.redaction import redacted
from trainer.rundir import CHECKPOINT, CHECKPOINT_MANIFEST

SLOWEST = 1e6  # bytes per second of a copy, below which it has failed
PIECE = 1 << 22


class RemoteFolder:
    """A folder behind an fsspec URL, with the checkpoints and small files of one run."""

    def __init__(self, url: str, what: str) -> None:
        try:
            store, path = formats.located(url if "://" in url else str(Path(url).expanduser().absolute()))
        except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: foo"
            raise UsageError(f"{what}={redacted(url)!r} cannot be opened: {error}") from None
        self.url, self.path, self._store = redacted(url).rstrip("/"), path.rstrip("/"), store
        self.system = getattr(store, "system", store)

    def call(self, name: str, *args: Any, seconds: float | None = None, size: int = 0, **kwargs: Any) -> Any:
        """Call a method of the file system with retries. `size`: bytes that it moves."""
        call = partial(getattr(self.system, name), *args, **kwargs)
        return retried(self.system, self.url, call, seconds, attempt_seconds=ATTEMPT_SECONDS + size / SLOWEST)

    def steps(self, seconds: float | None = None) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        self.system.invalidate_cache()
        try:
            listed = self.call("find", self.path, maxdepth=2, seconds=seconds)
        except FileNotFoundError:
            return []
        parts = [str(path).rsplit("/", 2)[1:] for path in listed if str(path).endswith(f"/{CHECKPOINT_MANIFEST}")]
        return sorted(int(m.group(1)) for folder, _ in parts if (m := CHECKPOINT.match(folder)))

    def read(self, name: str, seconds: float | None = None) -> bytes | None:
        """Return the content of a small file, or None if there is none."""
        try:
            return bytes(self.call("cat_file", f"{self.path}/{name}", seconds=seconds))
        except FileNotFoundError:
            return None

    def put(self, file: Path, name: str, check: Callable[[], None] = lambda: None) -> None:
        """Copy a local file, and compare its size. `check` is called between the parts of a large one."""
        path, size = f"{self.path}/{name}", file.stat().st_size
        try:
            if multipart.takes_parts(self.system, size):
                multipart.upload(self.system, self.call, file, path, check)
            else:
                self.call("put_file", str(file), path, size=size)
        except FileNotFoundError:  # a file system that has folders
            self.call("makedirs", path.rpartition("/")[0], exist_ok=True)
            self.call("put_file", str(file), path, size=size)
        if (there := self.call("info", path)["size"]) != size:
            raise OSError(f"{name} has {there:,} bytes there and {size:,} here")

    def get(self, name: str, file: Path) -> None:
        """Copy a remote file to a local one, in pieces that are retried."""
        file.parent.mkdir(parents=True, exist_ok=True)
        path = f"{self.path}/{name}"
        opening = self._store.open if self._store is self.system else self._store.open_uncached
        with opening(path) as source, file.open("wb") as to:
            shutil.copyfileobj(source, to, PIECE)

    def remove(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.call("rm", f"{self.path}/{name}", recursive=True)

    def files(self, name: str) -> list[str]:
        """Return the names of all files below a folder."""
        try:
            found = self.call("find", f"{self.path}/{name}")
        except FileNotFoundError:
            return []
        return sorted(str(path)[len(self.path) :].lstrip("/") for path in found)
