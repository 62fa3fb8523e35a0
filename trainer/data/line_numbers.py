"""Lines of a file from the byte offsets of its records: rows are counted without header and blank lines."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data import formats
from trainer.data.discovery import Shard

WITH_LINES = ("jsonl", "csv", "tsv", "text")
Span = tuple[tuple[int, ...], tuple[int, ...]]  # the offsets before and after a record, as a stream's state holds them


def lines_of(shard: Shard, spans: Sequence[Span]) -> list[str]:
    """The line of each record, "line 9" or "lines 9 to 11"; of parallel text that of the first file.

    One pass over the file up to the last record. Empty texts for formats without lines.

    Args:
        shard: a file that has been read up to the last of `spans`.
        spans: in the order of the file.
    """
    if shard.format not in WITH_LINES or not spans:
        return [""] * len(spans)
    edges = [(begin[0] if begin else 0, end[0] if end else 0) for begin, end in spans]
    inside: list[list[int]] = [[] for _ in spans]
    at, start = 0, 0
    for number, (line, after) in enumerate(formats.lines(shard.urls[0]), start=1):
        while at < len(edges) and start >= edges[at][1]:
            at += 1
        if at == len(edges):
            break
        if start >= edges[at][0] and (isinstance(line, int) or line.strip() or shard.format == "text"):
            inside[at].append(number)
        start = after
    if shard.format in ("csv", "tsv") and not spans[0][0] and len(inside[0]) > 1:
        inside[0] = inside[0][1:]  # the header
    return [_named(numbers) for numbers in inside]


def _named(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    return f"line {numbers[0]}" if len(numbers) == 1 else f"lines {numbers[0]} to {numbers[-1]}"
