"""Words that a shell completes: recipes, configs, run directories and keys of a recipe. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.recipe_files import SCHEMA, SHIPPED
from trainer.run_folders import runs_below

PACKAGE = Path(__file__).parent
CONFIGS = (PACKAGE.parent / "launch" / "accelerate_configs", PACKAGE.parent / "accelerate_configs")


def recipe_names(incomplete: str) -> list[str]:
    """Return shipped recipes and YAML files that begin like a word."""
    shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml") if path.stem.startswith(incomplete))
    return shipped + _yaml_files(incomplete)


def config_names(incomplete: str) -> list[str]:
    """Return Accelerate configs that begin like a word: shipped ones by name, others by path."""
    shipped = {path.stem for folder in CONFIGS for path in folder.glob("*.yaml") if path.stem.startswith(incomplete)}
    return sorted(shipped) + _yaml_files(incomplete)


def run_directories(incomplete: str) -> list[str]:
    """Return run directories that begin like a word, also some folders further down: `runs/a` for `ru`."""
    return [str(path) for start in _beginning(incomplete) for path in runs_below(start)]


def recipe_keys(incomplete: str) -> list[str]:
    """Return dotted keys of a recipe that begin like a word, each with "=": one more part than the word has."""
    if "=" in incomplete:
        return []
    try:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    *path, last = incomplete.split(".")
    sections = [schema]
    for part in path:
        found = [section["properties"][part] for section in sections if part in section.get("properties", {})]
        sections = [section for value in found for section in _sections(value, schema)]
    words: dict[str, None] = {}
    for section in sections:
        for name, value in section.get("properties", {}).items():
            if name.startswith(last):
                inner = _sections(value, schema)
                words |= dict.fromkeys(_continued(".".join([*path, name]), inner))
    return list(words)


def _continued(key: str, inner: list[dict[str, Any]]) -> list[str]:
    """Return a key with "=", or the keys of its section: a shell would add a space after "optim."."""
    if not inner:
        return [f"{key}="]
    return list(dict.fromkeys(f"{key}.{name}=" for section in inner for name in section.get("properties", {})))


def _sections(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in value:
        return [schema["$defs"][value["$ref"].rpartition("/")[2]]]
    return [found for option in value.get("oneOf", value.get("anyOf", ())) for found in _sections(option, schema)]


def _yaml_files(incomplete: str) -> list[str]:
    return [str(path) for path in _beginning(incomplete) if path.suffix in (".yaml", ".yml") and path.is_file()]


def _beginning(incomplete: str) -> list[Path]:
    """Return what is in the folder of a word and begins like it. Hidden names need their dot."""
    folder, _, last = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        found = sorted(place.iterdir())
    except OSError:
        return []
    return [path for path in found if path.name.startswith(last) and (last or not path.name.startswith("."))]
