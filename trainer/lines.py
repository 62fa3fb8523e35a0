"""Texts that a command is given: arguments, or lines of stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from trainer.errors import DataError


def given(texts: Sequence[str] | None) -> Iterator[str]:
    """The arguments of a command; where there are none, the lines of stdin.

    Raises:
        DataError: one is not UTF-8.
    """
    for number, text in enumerate(texts or (), start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"argument {number} is not UTF-8 at character {error.start}") from None
    return iter(texts) if texts else stdin_lines()


def stdin_lines() -> Iterator[str]:
    """A line ends at a line feed only: texts may contain U+0085 and other characters that Python takes for line ends.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin line {number} is not UTF-8: {error.reason} at byte {error.start}") from None
