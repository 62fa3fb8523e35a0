"""Where the keys of a YAML file are: line and column of each dotted key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

Place = tuple[int, int]  # line and column from 1


def positions(path: Path) -> dict[str, Place]:
    """Return line and column of every dotted key; items of a list by their number. Empty for a file that is no YAML."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return dict(_places(root, "", set())) if root is not None else {}


def _places(node: yaml.Node, prefix: str, above: set[int]) -> Iterator[tuple[str, Place]]:
    if id(node) in above:  # an alias inside its own anchor
        return
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", (key.start_mark.line + 1, key.start_mark.column + 1)
            yield from _places(value, f"{prefix}{key.value}.", above)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield f"{prefix}{number}", (item.start_mark.line + 1, item.start_mark.column + 1)
            yield from _places(item, f"{prefix}{number}.", above)


def place_of(key: str, places: dict[str, Place]) -> Place:
    """Return the place of a key, or of the nearest section around it that the file has; else the first line."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (found := places.get(".".join(parts[:end]))) is not None:
            return found
    return 1, 1
