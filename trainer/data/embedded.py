"""Rows of generated corpora (`trainer.corpora`), which a URL describes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from trainer.data.discovery import EMBEDDED


def generated_rows(url: str, row: int) -> Iterator[dict[str, Any]]:
    """Return the rows of one shard from a row on."""
    from trainer.corpora import embedded_rows  # reads word lists for half a second

    path, _, query = url.removeprefix(EMBEDDED).partition("?")
    corpus, split = path.split("/")
    numbers = {key: int(value) for key, value in parse_qsl(query)}
    rows = embedded_rows(corpus, split, numbers["rows"], numbers["seed"], numbers["shard"], numbers["shards"])
    return islice(iter(rows), row, None)


def generated_count(url: str) -> int:
    """Return the rows of one shard of a generated corpus."""
    numbers = {key: int(value) for key, value in parse_qsl(url.partition("?")[2])}
    return len(range(numbers["shard"], numbers["rows"], numbers["shards"]))
