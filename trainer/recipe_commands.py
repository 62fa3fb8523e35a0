"""The command `rankzero recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.completion import recipe_names
from trainer.errors import UsageError
from trainer.recipe_editor import without_line, write_with_schema
from trainer.recipe_files import SCHEMA, SHIPPED, find_recipe

USES = "`recipes`, `recipes show NAME` and `recipes copy NAME [FILE]`"


def _words(incomplete: str) -> list[str]:
    words = [word for word in ("show", "copy") if word.startswith(incomplete)]
    return words + [name for name in recipe_names(incomplete) if "/" not in name and "." not in name]


def recipes_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[show NAME | copy NAME [FILE]]",
            help="print a shipped recipe, or write it to a file of your own; default: list all",
            autocompletion=_words,
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of a recipe")] = False,
    force: Annotated[bool, typer.Option("--force", help="copy: overwrite the file")] = False,
) -> None:
    """List the shipped recipes, print or copy one of them, or print the JSON Schema of a recipe."""
    if schema:
        print(SCHEMA.read_text(encoding="utf-8"), end="")
        return
    if words:
        action, *names = words
        if action not in ("show", "copy") or not names or len(names) > (2 if action == "copy" else 1):
            raise UsageError(f"recipes {' '.join(words)}: allowed are {USES}")
        text = without_line(find_recipe(names[0]).read_text(encoding="utf-8"))
        if action == "show":
            print(text, end="")
        else:
            _copy(text, Path(names[1] if len(names) == 2 else f"{names[0]}.yaml"), force)
        return
    for path in sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{path.stem:20s} {first.removeprefix('#').strip()}")


def _copy(text: str, target: Path, force: bool) -> None:
    if target.suffix not in (".yaml", ".yml"):
        raise UsageError(f"recipes copy: {target}: the name of a recipe ends in .yaml")
    if target.exists() and not force:
        raise UsageError(f"recipes copy: {target} exists; --force overwrites it, or give another name")
    schema = write_with_schema(target, text)
    print(f"written: {target}, and {schema} for editors")
