"""The JSON Schema of a recipe for editors, as it is published in rankzero.schema.json (see trainer.recipe_editor)."""

from __future__ import annotations

import json
from typing import Any

from trainer.recipe.parsing import Recipe
from trainer.recipe.patterns import OWN_NAME


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
