"""A JSON array of objects as a stream: one element after another, never the array at once."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data import formats
from trainer.data.formats import BadFile
from trainer.data.sniffing import Form

_CONVERT = "One object per line is needed: convert it with `jq -c '.[]' FILE > rows.jsonl`"
_SPACE = " \t\r\n"


def array_records(url: str, offsets: Sequence[int], form: Form) -> Iterator[dict[str, Any]]:
    """Raw elements of a JSON array, each with the byte offset that follows it in the decoded file.

    Raises:
        BadFile: the array is not valid JSON, or an element is longer than a row may be.
    """
    at = offsets[0] if offsets else 0
    source = formats.content(url, at, form)
    decoder, parser = codecs.getincrementaldecoder("utf-8")("surrogateescape"), json.JSONDecoder()
    text, done, ended, first = "", 0, False, not offsets
    while True:
        found = _next(text, done, parser, first)
        if isinstance(found, int):  # where an element is, of which more is needed
            if ended or len(text) - found > 2 * formats.MAX_LINE_BYTES:
                raise BadFile(_broken(at, text[found:]))
            chunk = next(source, b"")
            ended = not chunk
            text, done = text[done:] + decoder.decode(chunk, final=ended), 0
            continue
        if found is None:
            _check_end(text[text.index("]", done) + 1 :], source)
            return
        begin, end = found
        raw = _bytes(text[begin:end])
        at += len(_bytes(text[done:end]))
        done, first = end, False
        yield {"raw": raw if len(raw) < formats.MAX_LINE_BYTES else len(raw), "at": (at,)}


def _check_end(text: str, source: Iterator[bytes]) -> None:
    rest = text.strip() or next((part for chunk in source if (part := chunk.strip())), b"")
    if rest:
        raise BadFile(f"more text after the end of its JSON array: {rest[:60]!r}. {_CONVERT}")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _next(text: str, at: int, parser: json.JSONDecoder, first: bool) -> tuple[int, int] | int | None:
    """Begin and end of the next element; a position where more text is needed; None at the end of the array."""
    start = _skipped(text, at)
    if first and text[start : start + 1] == "\ufeff":
        start = _skipped(text, start + 1)
    if text[start : start + 1] == "]" and not first:
        return None
    if text[start : start + 1] != ("[" if first else ","):
        return start
    begin = _skipped(text, start + 1)
    if first and text[begin : begin + 1] == "]":
        return None
    try:
        _, end = parser.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return begin
    return (begin, end) if text[_skipped(text, end) : _skipped(text, end) + 1] in (",", "]") else begin


def _skipped(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _broken(at: int, text: str) -> str:
    return f"a JSON array that cannot be read after byte {at:,}: {text[:60]!r}. Repair the array. {_CONVERT}"
