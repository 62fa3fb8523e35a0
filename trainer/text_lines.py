"""Read the texts of a command: its arguments, or lines of stdin."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from trainer.errors import DataError, UsageError

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
