"""Render job scripts from Jinja2 templates.

Every expression of a template must pass through one of the filters below, except for numbers. Rendering fails on any
other, so a value cannot run as a command, even if a user edits a template.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from trainer.errors import UsageError
from trainer.redaction import redacted

_HERE = Path(__file__).parent
FOLDERS = (_HERE, _HERE.parent.parent / "slurm")  # in the wheel, in a source checkout
WORD = re.compile(r"[A-Za-z0-9_/\[(][A-Za-z0-9_.,:@+=/&|*()\[\]%-]*")  # no space, quote, $, #, newline
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class _Safe(str):
    """Text that is safe in a script as it is."""


def templates() -> Path:
    """Return the folder of the shipped templates."""
    for folder in FOLDERS:
        if (folder / "train.sbatch").is_file():
            return folder
    raise UsageError(f"no train.sbatch at {' or '.join(map(str, FOLDERS))}: reinstall rankzero")


def render(template: str, values: Mapping[str, Any], folder: Path | None = None) -> str:
    """Render a template of `folder`, or else a shipped one.

    Raises:
        UsageError: a value is not allowed at its place, or the template is missing or wrong.
    """
    folders = [folder, templates()] if folder else [templates()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - the filters quote for the shell; `_checked` refuses what passed none of them
        finalize=_checked,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    try:
        return environment.get_template(template).render(values)
    except jinja2.TemplateNotFound as error:
        raise UsageError(f"template {error.name}: not in {' or '.join(map(str, folders))}") from None
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UsageError(f"template {template}{line}: {error}") from None


def _checked(value: Any) -> Any:
    if isinstance(value, _Safe | jinja2.Undefined) or type(value) is int:
        return value
    raise UsageError(f"template: {value!r} is written without a filter; use one of {', '.join(sorted(FILTERS))}")


# -- filters for commands ----------------------------------------------------------------------------------------------


def sh(value: object) -> _Safe:
    """Quote a value as one word of the shell."""
    text = str(value)
    if "\0" in text:
        raise UsageError(f"{text!r}: a NUL character cannot be passed to a program")
    return _Safe(shlex.quote(text))


def words(values: Iterable[object]) -> _Safe:
    """Quote each value as a word of the shell."""
    return _Safe(" ".join(sh(value) for value in values))


def shell(line: str) -> _Safe:
    """Keep the user's own shell code as it is (`launch.setup`)."""
    return _Safe(line)


def comment(text: str) -> _Safe:
    """Leave out credentials, and replace control characters, which would end a comment."""
    return _Safe(CONTROL.sub(" ", redacted(text)))


# -- filters for #SBATCH lines -----------------------------------------------------------------------------------------


def word(value: object) -> _Safe:
    """Refuse characters that have a meaning to sbatch or a shell."""
    text = str(value)
    if not WORD.fullmatch(text):
        bad = next((c for c in text if not WORD.fullmatch(f"a{c}")), text[:1])
        raise UsageError(f"{text!r}: {bad!r} is not allowed in a #SBATCH line")
    return _Safe(text)


def output(path: tuple[str, str]) -> _Safe:
    """Quote a file name for --output: a literal part, and a pattern (%j, %a)."""
    literal, pattern = path
    if CONTROL.search(literal) or "\\" in literal:
        raise UsageError(
            f"{literal!r}: sbatch cannot write a log there (backslash or control character): choose another --run"
        )
    return _Safe('"' + (literal.replace("%", "%%") + pattern).replace('"', '\\"') + '"')


def directive(line: str) -> _Safe:
    """Keep a complete option of the user (`launch.extra`), such as --exclusive or --gres=gpu:a100:4."""
    if CONTROL.search(line) or not line.startswith("-"):
        raise UsageError(f"launch.extra: {line!r} is not an option of sbatch: write one per line, such as --exclusive")
    return _Safe(line)


FILTERS = {function.__name__: function for function in (sh, words, shell, comment, word, output, directive)}
