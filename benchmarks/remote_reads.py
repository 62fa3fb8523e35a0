"""Read a corpus from a store with a latency and a bandwidth for each request, while a consumer computes.

python -m benchmarks.remote_reads [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.registry import register_implementation
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from trainer.data import formats, remote

SIZE = 64 << 20
LATENCY, BANDWIDTH = 0.05, 50e6  # of one request: seconds, bytes per second
COMPUTING = 100e6  # bytes per second of the consumer
requests = [0]


class Slow(AbstractFileSystem):
    """A store with one file of zeros."""

    protocol = "slow"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": SIZE, "type": "file", "ETag": "1"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        requests[0] += 1
        time.sleep(LATENCY + (end - start) / BANDWIDTH)
        return bytes(end - start)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        return SlowFile(self, path, block_size=block_size or "default", **kwargs)


class SlowFile(AbstractBufferedFile):
    """Its file as fsspec makes it: the next 5 MB are fetched when the last are read."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


def seconds(chunks: Iterator[bytes]) -> dict[str, float]:
    """Return how long the consumer took, and how much of it it waited for bytes."""
    began, computed, size = time.monotonic(), 0.0, 0
    requests[0] = 0
    for chunk in chunks:
        size += len(chunk)
        before = time.monotonic()
        time.sleep(len(chunk) / COMPUTING)
        computed += time.monotonic() - before
    assert size == SIZE
    total = time.monotonic() - began
    return {"seconds": round(total, 2), "waited": round(total - computed, 2), "requests": requests[0]}


def by_fsspec() -> Iterator[bytes]:
    with Slow().open("/file", "rb") as file:
        yield from iter(lambda: file.read(formats.CHUNK_BYTES), b"")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    register_implementation("slow", Slow, clobber=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"RANKZERO_CACHE": folder, "RANKZERO_CACHE_GB": "1"}
        found = {"fsspec, reading ahead when asked": seconds(by_fsspec())}
        found["rankzero, first epoch"] = seconds(formats.chunks("slow:///file"))
        remote.forget()
        found["rankzero, second epoch, from the cache"] = seconds(formats.chunks("slow:///file"))
    computing = SIZE / COMPUTING
    for name, facts in found.items():
        print(f"{name:40s} {facts['seconds']:6.2f} s, {facts['waited']:5.2f} s waited, {facts['requests']} requests")
    print(f"{'the consumer alone':40s} {computing:6.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
