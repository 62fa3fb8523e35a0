"""A hash of the files of a split, by which a later start finds that they have changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainer.data import formats
from trainer.data.discovery import Shard
from trainer.data.embedded import generated_rows
from trainer.data.formats import is_local
from trainer.data.sources import Source, damaged
from trainer.errors import RankzeroError

# The content of a larger split is not read for its fingerprint, nor are all of its rows before the training.
FINGERPRINT_BYTES = 2_000_000_000


def is_large(source: Source) -> bool:
    """Return whether the content of a split is more than is read at every start."""
    return sum(shard.size or 0 for shard in source.shards) > FINGERPRINT_BYTES


def fingerprint(source: Source, of: str | None = None) -> str:
    """Return a SHA-256 of all shards. It is the same for the same files anywhere if it is of their content.

    Args:
        source: of a split.
        of: content: names, sizes and content; listing: names, sizes, and etags or times of modification, so that no
            file is read. None: content, but checksums of the store for a remote corpus of more than FINGERPRINT_BYTES,
            as older runs and `prepare` record it.
    """
    digest, read_all = hashlib.sha256(), of == "content" or not is_large(source)
    for shard in source.shards:
        digest.update(json.dumps([shard.name, shard.size, shard.roles]).encode())
        if of == "listing":
            digest.update(json.dumps(shard.versions or shard.urls).encode())  # the URL of a generated shard
            continue
        try:
            for url in shard.urls:
                _digest_content(shard, url, read_all, digest)
        except RankzeroError:
            raise
        except Exception as error:  # a store may raise anything
            raise damaged(shard, 0, error) from error
    return digest.hexdigest()


def _digest_content(shard: Shard, url: str, read_all: bool, digest: Any) -> None:
    if shard.format == "embedded":
        for values in generated_rows(url, 0):
            digest.update(json.dumps(values, sort_keys=True).encode())
        return
    system, path = formats.located(url)
    if read_all or is_local(system):
        with formats.opened(url) as file:
            while chunk := file.read(formats.CHUNK_BYTES):
                digest.update(chunk)
    else:
        digest.update(str(system.checksum(path)).encode())
