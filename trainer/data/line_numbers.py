"""The lines of records in a file, for messages."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data import formats
from trainer.data.discovery import Shard
from trainer.data.sniffing import Form

Span = tuple[tuple[int, ...], tuple[int, ...]]  # the byte offsets before and after a record


def lines_of(shard: Shard, form: Form, spans: Sequence[Span]) -> list[str]:
    """Return the line of each record, "line 9" or "lines 9 to 11"; of parallel text that of the first file.

    The file is read once, up to the last record. The texts are empty for formats without lines.

    Args:
        shard: a file that has been read up to the last of `spans`.
        form: of its first file.
        spans: in the order of the file.
    """
    if shard.format not in ("jsonl", "csv", "tsv", "text", "conll") or not spans:
        return [""] * len(spans)
    edges = [(begin[0] if begin else 0, end[0] if end else 0) for begin, end in spans]
    numbers: list[list[int]] = [[] for _ in spans]
    at, start = 0, 0
    for number, (line, after) in enumerate(formats.lines(shard.urls[0], 0, form), start=1):
        while at < len(edges) and start >= edges[at][1]:
            at += 1
        if at == len(edges):
            break
        if start >= edges[at][0] and (isinstance(line, int) or line.strip() or shard.format == "text"):
            numbers[at].append(number)
        start = after
    before = 1 + form.separator_line  # the header, and Excel's line
    if shard.format in ("csv", "tsv") and not spans[0][0] and len(numbers[0]) > before:
        numbers[0] = numbers[0][before:]
    ends = [(of[0], of[-1]) if of else (0, 0) for of in numbers]
    return [f"lines {a} to {b}" if a < b else f"line {a}" if a else "" for a, b in ends]
