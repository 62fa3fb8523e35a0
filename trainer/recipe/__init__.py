"""Recipes: their sections, how they are read and checked, and those that are shipped. No torch here."""

from trainer.recipe.changes import FREE_TO_CHANGE, changed_keys
from trainer.recipe.parsing import Recipe, apply_overrides, recipe_class
from trainer.recipe.yaml_text import parse_yaml, read_yaml

__all__ = ["FREE_TO_CHANGE", "Recipe", "apply_overrides", "changed_keys", "parse_yaml", "read_yaml", "recipe_class"]
