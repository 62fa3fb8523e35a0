"""Values that the schema of recipes allows, at the edges of what it allows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import words
from trainer.recipe_loading import Recipe

SCHEMA = Recipe.model_json_schema()
LARGE = 2**70
Node = Mapping[str, Any]


def settings(base: Node) -> dict[str, Node]:
    """Return the dotted keys that a recipe may set, each with its part of the schema."""
    return dict(_below(SCHEMA, base, ""))


def _below(node: Node, values: Any, prefix: str) -> Iterator[tuple[str, Node]]:
    for key, inner in node.get("properties", {}).items():
        at = values.get(key) if isinstance(values, dict) else None
        found = _branch(inner, at)
        if found.get("properties"):
            yield from _below(found, at, f"{prefix}{key}.")
        elif "const" not in found:
            yield f"{prefix}{key}", found


def _branch(node: Node, values: Any) -> Node:
    """Follow references, and of the sections that a `kind` decides, take the one that the values name."""
    while "$ref" in node or "discriminator" in node:
        if "discriminator" in node:
            name = values.get("kind") if isinstance(values, dict) else None
            node = {"$ref": node["discriminator"]["mapping"].get(name) or node["oneOf"][0]["$ref"]}
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def values_of(node: Node) -> st.SearchStrategy[Any]:
    """Draw values that a part of the schema allows."""
    node = _branch(node, None)
    if choices := node.get("anyOf") or node.get("oneOf"):
        return st.one_of([values_of(choice) for choice in choices])
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    simple = {"null": st.none(), "boolean": st.booleans()}
    kind = node.get("type")
    if kind in simple:
        return simple[kind]
    if kind in ("integer", "number"):
        return _numbers(node, whole=kind == "integer")
    if kind == "string":
        return _texts(node)
    if kind == "array":
        return _lists(node)
    return _objects(node) if kind == "object" else words.value(3)


def _numbers(node: Node, *, whole: bool) -> st.SearchStrategy[Any]:
    least = node.get("minimum", node.get("exclusiveMinimum", -LARGE))
    most = node.get("maximum", node.get("exclusiveMaximum", LARGE))
    above, below = "exclusiveMinimum" in node, "exclusiveMaximum" in node
    if whole:
        least, most = math.ceil(least) + above, math.floor(most) - below
        usual = [n for n in (least, least + 1, 2, 3, 7, 64, 10**6, 2**31, 2**63, most) if least <= n <= most]
        return st.one_of(st.sampled_from(usual[:6]), st.sampled_from(usual), st.integers(least, min(most, least + 64)))
    tiny = [math.nextafter(least, math.inf), math.nextafter(most, -math.inf), 5e-324, 1e-30, 1e300, 0.0, 0.5, 1.0]
    right = [n for n in tiny if (least < n if above else least <= n) and (n < most if below else n <= most)]
    drawn = st.floats(least, most, exclude_min=above, exclude_max=below, allow_nan=False)
    return st.one_of(st.sampled_from(right), drawn)


def _texts(node: Node) -> st.SearchStrategy[str]:
    if pattern := node.get("pattern"):
        return st.from_regex(pattern)
    least, most = node.get("minLength", 0), node.get("maxLength", 5000)
    return words.text().filter(lambda text: least <= len(text) <= most)


def _lists(node: Node) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" in node:
        return st.tuples(*map(values_of, node["prefixItems"])).map(list)
    least = node.get("minItems", 0)
    return st.lists(values_of(node.get("items", {})), min_size=least, max_size=node.get("maxItems", least + 2))


def _objects(node: Node) -> st.SearchStrategy[dict[str, Any]]:
    if known := node.get("properties"):
        needed = {key: values_of(inner) for key, inner in known.items() if key in node.get("required", ())}
        return st.fixed_dictionaries(
            needed, optional={key: values_of(inner) for key, inner in known.items() if key not in needed}
        )
    more = node.get("additionalProperties")
    return st.dictionaries(words.text(8), values_of(more) if isinstance(more, dict) else words.scalar(), max_size=2)


def overrides(base: Node, section: str = "") -> st.SearchStrategy[str]:
    """Draw `key=value`, valid by itself. Not all values fit each other. `section`: of these keys only."""
    known = {key: node for key, node in settings(base).items() if key.startswith(section)}
    return st.sampled_from(sorted(known)).flatmap(
        lambda key: values_of(known[key]).map(lambda value: f"{key}={json.dumps(value)}")
    )
