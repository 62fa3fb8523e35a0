"""From a job to its script: Jinja2 templates in which nothing is written that has not been quoted or allow-listed.

Every expression of a template must pass through one of the filters below (numbers may stand alone); rendering fails on
any other, so that an edited template cannot let a value run as a command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from trainer.errors import UsageError

_HERE = Path(__file__).parent
FOLDERS = (_HERE, _HERE.parent.parent / "slurm")  # in the wheel, in a source checkout
WORD = re.compile(
    r"[A-Za-z0-9_/\[(][A-Za-z0-9_.,:@+=/&|*()\[\]%-]*"
)  # in #SBATCH lines: no space, quote, $, #, newline
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class _Safe(str):
    """Text that may stand in a script as it is."""


def templates() -> Path:
    """The folder of the shipped templates."""
    for folder in FOLDERS:
        if (folder / "train.sbatch").is_file():
            return folder
    raise UsageError(f"no train.sbatch at {' or '.join(map(str, FOLDERS))}: reinstall rankzero")


def render(template: str, values: Mapping[str, Any], folder: Path | None = None) -> str:
    """The script that a template of `folder` (default: the shipped ones) makes of the values.

    Raises:
        UsageError: a value that cannot stand where the template wants it; or the template is missing or wrong.
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
    raise UsageError(f"template: {value!r} is written without a filter; the filters: {', '.join(sorted(FILTERS))}")


# -- in the script -----------------------------------------------------------------------------------------------------


def sh(value: object) -> _Safe:
    """One word of the shell, whatever it holds."""
    text = str(value)
    if "\0" in text:
        raise UsageError(f"{text!r}: a NUL character cannot be passed to a program")
    return _Safe(shlex.quote(text))


def words(values: Iterable[object]) -> _Safe:
    return _Safe(" ".join(sh(value) for value in values))


def shell(line: str) -> _Safe:
    """The user's own shell code, as it is (`launch.setup`)."""
    return _Safe(line)


def comment(text: str) -> _Safe:
    """After `# `: control characters would end the line."""
    return _Safe(CONTROL.sub(" ", text))


# -- in #SBATCH lines --------------------------------------------------------------------------------------------------


def word(value: object) -> _Safe:
    """A value made of characters that neither sbatch nor a shell takes for anything else."""
    text = str(value)
    if not WORD.fullmatch(text):
        bad = next((c for c in text if not WORD.fullmatch(f"a{c}")), text[:1])
        raise UsageError(f"{text!r} cannot stand in a #SBATCH line: {bad!r} is not allowed there")
    return _Safe(text)


def output(path: tuple[str, str]) -> _Safe:
    """A file name for --output, in double quotes: a part that sbatch shall take literally, and a pattern (%j, %a)."""
    literal, pattern = path
    if CONTROL.search(literal) or "\\" in literal:
        raise UsageError(
            f"{literal!r}: sbatch cannot write a log there (backslash or control character): choose another --run"
        )
    return _Safe('"' + (literal.replace("%", "%%") + pattern).replace('"', '\\"') + '"')


def directive(line: str) -> _Safe:
    """A whole option of the user's own (`launch.extra`), as --exclusive or --gres=gpu:a100:4."""
    if CONTROL.search(line) or not line.startswith("-"):
        raise UsageError(f"launch.extra: {line!r} is no option of sbatch: write one per line, as --exclusive")
    return _Safe(line)


FILTERS = {
    "sh": sh,
    "words": words,
    "shell": shell,
    "comment": comment,
    "word": word,
    "output": output,
    "directive": directive,
}
