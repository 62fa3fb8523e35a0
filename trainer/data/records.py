"""Records of JSON Lines files, JSON arrays and text files, each with the byte offsets that follow it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from trainer.data import formats
from trainer.data.formats import OTHER_ENCODING, BadFile, Parsed, too_long
from trainer.data.sniffing import Form

Record = tuple[Parsed, tuple[int, ...]]
_CONVERT = "One object per line is needed: convert it with `jq -c '.[]' FILE > rows.jsonl`"
_SPACE = " \t\r\n"


def json_records(url: str, offset: int, form: Form) -> Iterator[Record]:
    """Yield the lines of a JSON Lines file from a byte offset. Blank lines are not rows."""
    for line, at in formats.lines(url, offset, form):
        if isinstance(line, int) or line.strip():
            yield _parsed(line), (at,)


def _parsed(raw: bytes | int) -> Parsed:
    if isinstance(raw, int):
        return Parsed({}, too_long(raw))
    if b"\0" in raw:
        return Parsed({}, "NUL byte")
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Parsed({}, f"invalid UTF-8: at byte {error.start} of the line{OTHER_ENCODING}")
    except (ValueError, RecursionError) as error:
        return Parsed({}, f"not JSON: {error}")
    if not isinstance(values, dict):
        return Parsed({}, f"not a JSON object: {type(values).__name__}; one object per line is needed")
    return Parsed(values)


def text_records(
    urls: Sequence[str], roles: Sequence[str], offsets: Sequence[int], forms: Sequence[Form]
) -> Iterator[Record]:
    """Yield one line of each of some parallel text files, by role. A trailing "\\r" is dropped, nothing else."""
    at = list(offsets) or [0] * len(urls)
    for row in zip_longest(*(formats.lines(*file) for file in zip(urls, at, forms, strict=True))):
        for i, line in enumerate(row):
            if line is not None:
                at[i] = line[1]
        yield _text([line and line[0] for line in row], roles), tuple(at)


def _text(raw: Sequence[bytes | int | None], roles: Sequence[str]) -> Parsed:
    values: dict[str, object] = {}
    for role, line in zip(roles, raw, strict=True):
        if line is None:
            return Parsed({}, f"one-sided pair: the file of {role!r} has ended")
        if isinstance(line, int):
            return Parsed({}, f"{too_long(line)}, {role!r}")
        try:
            values[role] = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            return Parsed({}, f"invalid UTF-8: at byte {error.start} of the line, {role!r}{OTHER_ENCODING}")
    return Parsed(values)


def array_records(url: str, offset: int, form: Form) -> Iterator[Record]:
    """Yield the elements of a JSON array from a byte offset in the decoded file, never the array at once.

    Raises:
        BadFile: the array is not valid JSON, or an element is longer than a row may be.
    """
    source = formats.content(url, offset, form)
    decoder, parser = codecs.getincrementaldecoder("utf-8")("surrogateescape"), json.JSONDecoder()
    text, done, ended, first = "", 0, False, not offset
    while True:
        element = _next(text, done, parser, first)
        if isinstance(element, int):  # the position of an element that is not complete yet
            if ended or len(text) - element > 2 * formats.MAX_LINE_BYTES:
                raise BadFile(
                    f"a JSON array that cannot be read after byte {offset:,}: {text[element:][:60]!r}. "
                    f"Repair the array. {_CONVERT}"
                )
            chunk = next(source, b"")
            ended = not chunk
            text, done = text[done:] + decoder.decode(chunk, final=ended), 0
            continue
        if element is None:
            _check_end(text[text.index("]", done) + 1 :], source)
            return
        begin, end = element
        raw = _bytes(text[begin:end])
        offset += len(_bytes(text[done:end]))
        done, first = end, False
        yield _parsed(raw if len(raw) < formats.MAX_LINE_BYTES else len(raw)), (offset,)


def _check_end(text: str, source: Iterator[bytes]) -> None:
    rest = text.strip() or next((part for chunk in source if (part := chunk.strip())), b"")
    if rest:
        raise BadFile(f"more text after the end of its JSON array: {rest[:60]!r}. {_CONVERT}")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _next(text: str, at: int, parser: json.JSONDecoder, first: bool) -> tuple[int, int] | int | None:
    """Return begin and end of the next element, a position where more text is needed, or None at the array's end."""
    start = _after_space(text, at)
    if first and text[start : start + 1] == "\ufeff":
        start = _after_space(text, start + 1)
    if text[start : start + 1] == "]" and not first:
        return None
    if text[start : start + 1] != ("[" if first else ","):
        return start
    begin = _after_space(text, start + 1)
    if first and text[begin : begin + 1] == "]":
        return None
    try:
        _, end = parser.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return begin
    following = _after_space(text, end)
    return (begin, end) if text[following : following + 1] in (",", "]") else begin


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
