"""Lines of stdin as texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from trainer.errors import DataError


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
