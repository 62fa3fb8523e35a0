"""Sentences of CoNLL files: one token a line with its columns, and a blank line after each sentence.

Columns are separated by tabs or, in a file without tabs, by spaces. They are named "0", "1", … as those of a CSV file
without a header. The first is also called `tokens` and the last `tags`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trainer.data import formats
from trainer.data.formats import OTHER_ENCODING, Parsed, too_long
from trainer.data.sniffing import Form, Reading

Record = tuple[Parsed, tuple[int, ...]]
_TAG = re.compile(r"O|[BIESLU]-\S+")
DOCUMENT = "-DOCSTART-"  # the only token of a sentence that begins a document (CoNLL-2003)


def conll_records(url: str, offset: int, form: Form, reading: Reading) -> Iterator[Record]:
    """Yield the sentences of a file from a byte offset, each as {"0": [values], …, "tokens": […], "tags": […]}.

    Lines before a sentence that begin with "#" and have another number of columns are comments.
    """
    held: list[bytes | int] = []
    size = at = 0
    for line, at in formats.lines(url, offset, form):
        if isinstance(line, int) or line.strip():
            size += line if isinstance(line, int) else len(line) + 1
            held.append(line if size < formats.MAX_LINE_BYTES else size)  # of a sentence that is too long, no line more
            held = held[-1:] if isinstance(held[-1], int) else held
            continue
        if held:
            yield from _sentence(held, at, reading)
            held, size = [], 0
    if held:
        yield from _sentence(held, at, reading)


def looks_like_conll(lines: Sequence[str]) -> bool:
    """Return whether the first lines of a text file are tokens with tags: equal columns, the last one O, B-X or I-X."""
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    tags = {row[-1] for row in rows}
    even = bool(rows) and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)
    return even and "O" in tags and len(tags) > 1 and all(_TAG.fullmatch(tag) for tag in tags)


def _sentence(lines: Sequence[bytes | int], at: int, reading: Reading) -> Iterator[Record]:
    """Yield the record of the lines of a sentence, or nothing for the mark of a document."""
    if isinstance(lines[-1], int):
        yield Parsed({}, too_long(lines[-1])), (at,)
        return
    try:
        texts = [line.decode("utf-8").rstrip("\r\n") for line in lines if not isinstance(line, int)]
    except UnicodeDecodeError as error:
        yield Parsed({}, f"invalid UTF-8: at byte {error.start} of a line{OTHER_ENCODING}"), (at,)
        return
    delimiter = reading.delimiter or ("\t" if any("\t" in text for text in texts) else " ")
    rows = [[field.strip(" ") for field in text.strip(" ").split(delimiter)] for text in texts]
    if delimiter == " ":  # any number of them
        rows = [[field for field in row if field] for row in rows]
    width = len(rows[-1])
    while texts[0].startswith("#") and len(rows[0]) != width:
        del rows[0], texts[0]
    if rows[0][0] == DOCUMENT and len(rows) == 1:
        return
    for row, text in zip(rows, texts, strict=True):
        if len(row) != width or width < 2:
            wanted = "2 or more are needed" if width < 2 else f"other lines of the sentence have {width}"
            yield Parsed({}, f"wrong number of columns: {len(row)} in {text[:60]!r}; {wanted}"), (at,)
            return
    columns = {str(number): [row[number] for row in rows] for number in range(width)}
    yield Parsed({**columns, "tokens": columns["0"], "tags": columns[str(width - 1)]}), (at,)
