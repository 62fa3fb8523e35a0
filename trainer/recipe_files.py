"""The files of recipes: shipped ones by name, others by path, and the published JSON Schema. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from trainer.errors import UsageError

SHIPPED = Path(__file__).parent / "recipe" / "shipped"
SCHEMA = SHIPPED.parent / "rankzero.schema.json"


def find_recipe(name: str) -> Path:
    """A shipped recipe by name, others by path.

    Raises:
        UsageError: neither; names the nearest one.
    """
    shipped = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        return _existing(Path(name), shipped)
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(sorted(shipped))}"
    raise UsageError(f"recipe {name!r} is not shipped; {hint} (others are given by path, ending in .yaml)")


def _existing(path: Path, shipped: Mapping[str, Path]) -> Path:
    """Return the path of a recipe. If there is no such file, name the nearest file there or the shipped recipe."""
    if path.exists():
        return path
    files = [file.name for file in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, files, n=1) or difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {path.with_name(near[0]) if near[0] in files else near[0]}?" if near else "check the path"
    raise UsageError(f"recipe {path} does not exist; {hint} `rankzero recipes` lists the shipped ones")
