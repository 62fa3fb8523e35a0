"""The JSON Schema of a recipe for editors: its file in the package, and the line of a recipe that points to a copy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer.files import write_atomically
from trainer.recipe.parsing import Recipe
from trainer.recipe.patterns import OWN_NAME

SCHEMA = Path(__file__).parent / "rankzero.schema.json"  # of shipped tasks; written by tests/test_editor.py
SHIPPED_LINE = f"# yaml-language-server: $schema=../{SCHEMA.name}"  # of recipes in shipped/
LINE = f"# yaml-language-server: $schema={SCHEMA.name}"  # of a recipe with the schema next to it
_LINE = re.compile(r"^# yaml-language-server: .*\n", re.MULTILINE)


def schema_of(recipe: type[Recipe]) -> dict[str, Any]:
    """Return the JSON Schema of a recipe, which also allows a task of a user's own package."""
    schema = recipe.model_json_schema()
    own = {
        "title": "Task of another package",
        "type": "object",
        "properties": {"kind": {"type": "string", "pattern": OWN_NAME, "description": "package.module:Class"}},
        "required": ["kind"],
    }
    choices = schema["properties"]["task"]["oneOf"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "description": "A recipe of rankzero: everything that a run depends on.",
        "properties": schema["properties"] | {"task": {"oneOf": [*choices, own], "description": "what is trained"}},
    }


def schema_text(recipe: type[Recipe]) -> str:
    """Return the JSON Schema as it is published."""
    return json.dumps(schema_of(recipe), indent=2) + "\n"


def without_line(text: str) -> str:
    """Return a recipe without the line for editors, which holds for the folder of the shipped recipes only."""
    return _LINE.sub("", text)


def write_with_schema(target: Path, text: str) -> Path:
    """Write a recipe, and next to it the schema that its line for editors names. Return the path of the schema.

    The line follows the comment at the top.
    """
    lines = without_line(text).splitlines(keepends=True)
    head = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = target.parent / SCHEMA.name
    write_atomically(schema, SCHEMA.read_text(encoding="utf-8"))
    write_atomically(target, "".join([*lines[:head], f"{LINE}\n", *lines[head:]]))
    return schema
