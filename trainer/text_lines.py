"""Read the texts of a command: its arguments, or lines of stdin."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from typer.core import TyperCommand

from trainer.errors import DataError, UsageError

Line = TypeVar("Line")
NO_OBJECT = "(the line is not a JSON object)"
FORMATS = ("auto", "text", "jsonl")
SHOWN = 10  # numbers of lines in a message
WIDE = 1000  # characters, more than any table has
_OPTION = re.compile(r"-{1,2}[A-Za-z][\w-]*(?:=.*)?", re.DOTALL)  # neither "-1" nor "- a text"


class TextCommand(TyperCommand):
    """A command whose arguments are texts. A text such as "- Hello" or "-1" is not an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            UsageError: a word looks like an option that this command does not have.
        """
        ctx.ignore_unknown_options = True
        known = {name for param in self.get_params(ctx) for name in param.opts if name.startswith("-")}
        for word in args[: args.index("--")] if "--" in args else args:
            if _OPTION.fullmatch(word) and word.partition("=")[0] not in known:
                raise UsageError(
                    f"no such option: {word}; allowed: {', '.join(sorted(known))}. Put two dashes before "
                    f"a text that starts like an option: -- '{word}'"
                )
        return super().parse_args(ctx, args)


def prepare_streams() -> None:
    """Replace closed standard streams by /dev/null. Write characters that an encoding lacks as \\uXXXX."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    codecs.register_error("rankzero-escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(getattr(stream, "encoding", None), str) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="rankzero-escape")  # type: ignore[union-attr]


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


def table_console() -> Console:
    """Return a console for tables. It cuts no column, as rich does at 80 characters in pipes and narrow terminals."""
    return Console(width=WIDE)


def read_texts(texts: Sequence[str] | None) -> Iterator[str]:
    """Return the arguments of a command, or the lines of stdin if there are none.

    Raises:
        DataError: a text is not UTF-8.
    """
    for number, text in enumerate(texts or (), start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"argument {number} is not UTF-8 at character {error.start}") from None
    return iter(texts) if texts else stdin_lines()


def read_rows(
    texts: Sequence[str] | None, form: str, is_row: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Yield the arguments of a command, or the lines of stdin, with their numbers: texts, or rows as JSON objects.

    Among rows, empty lines are left out.

    Args:
        texts: the arguments.
        form: of FORMATS; auto: the lines are rows if the first one is a JSON object for which `is_row` is true.
        is_row: whether an object has what the command needs.

    Raises:
        UsageError: an unknown format, or JSON lines as arguments.
        DataError: a line is not UTF-8.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form} is unknown; allowed: {', '.join(FORMATS)}")
    lines: Iterator[tuple[int, str]] = enumerate(read_texts(texts), start=1)
    if texts or form == "text":
        if form == "jsonl":
            raise UsageError("--format jsonl reads rows from stdin; leave the texts out")
        yield from lines
        return
    first = next(lines, None)
    if first is None:
        return
    lines = chain((first,), lines)
    if form == "auto" and not (isinstance(row := _json(first[1]), dict) and is_row(row)):
        yield from lines
        return
    for number, line in lines:
        if line.strip():
            row = _json(line)
            yield number, row if isinstance(row, dict) else {NO_OBJECT: line}  # an error of this line only: no column


class Numbers:
    """The numbers of the lines that a command has read and not answered yet, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def of(self, lines: Iterable[tuple[int, Line]]) -> Iterator[Line]:
        """Yield lines without their numbers."""
        for number, line in lines:
            self._waiting.append(number)
            yield line

    def answered(self) -> int:
        """Return the number of the next line that is answered."""
        return self._waiting.popleft()


def shown_numbers(numbers: Sequence[int]) -> str:
    """Return the first numbers of lines for a message."""
    more = " …" if len(numbers) > SHOWN else ""
    return f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(map(str, numbers[:SHOWN]))}{more}"


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def stdin_lines() -> Iterator[str]:
    """Yield the lines of stdin. Only a line feed ends a line: texts may contain U+0085, which ends one in Python.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin line {number} is not UTF-8: {error.reason} at byte {error.start}") from None
