"""The published JSON Schema of a recipe, and the line of a recipe with which editors find its copy."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.files import make_parents, write_atomically
from trainer.recipe_files import SCHEMA

SHIPPED_LINE = f"# yaml-language-server: $schema=../{SCHEMA.name}"  # of recipes in recipe/shipped
LINE = f"# yaml-language-server: $schema={SCHEMA.name}"  # of a recipe with the schema next to it
_LINE = re.compile(r"^# yaml-language-server: .*\n", re.MULTILINE)


def without_line(text: str) -> str:
    """Return a recipe without the line for editors, which holds for the folder of the shipped recipes only."""
    return _LINE.sub("", text)


def write_with_schema(target: Path, text: str) -> Path:
    """Write a recipe, and next to it the schema that its line for editors names. Return the path of the schema.

    The line follows the comment at the top.
    """
    lines = without_line(text).splitlines(keepends=True)
    head = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    make_parents(target)
    schema = target.parent / SCHEMA.name
    write_atomically(schema, SCHEMA.read_text(encoding="utf-8"))
    write_atomically(target, "".join([*lines[:head], f"{LINE}\n", *lines[head:]]))
    return schema
