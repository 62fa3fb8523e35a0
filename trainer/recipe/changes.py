"""Which keys of two recipes differ and would change a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Keys whose change does not change a step; all others must agree between a checkpoint and the recipe that resumes it.
# `data.root` is free when the fingerprint of its files is the same: the caller compares that.
FREE_TO_CHANGE = (
    "name",
    "launch",
    "track",
    "evaluation",
    "export",
    "loop.keep",
    "loop.mirror",
    "loop.save_every",
    "loop.callbacks",
    "loop.log_every",
    "loop.ledger",
    "loop.peak_tflops",
    "data.root",
    "data.mix.*.root",
    "data.check",
    "data.workers",
    "data.prefetch",
)


ORDERED = ("task.labels",)  # mappings whose order counts: it numbers the classes


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ between two dumped recipes and would change a step, with old and new value."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(_is_in(key, free) for free in FREE_TO_CHANGE)
    }


def different_keys(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted keys whose values are not equal in all dumped recipes, with all values; None where it is missing."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    found = {key: [values.get(key) for values in flat] for key in sorted({key for values in flat for key in values})}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _is_in(key: str, free: str) -> bool:
    """Whether a key is one that is free to change, or in such a section. "*" is one part of a key."""
    parts, allowed = key.split("."), free.split(".")
    return len(parts) >= len(allowed) and all(a in ("*", part) for part, a in zip(parts, allowed, strict=False))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
            if prefix + key in ORDERED:
                yield prefix + key, list(value)
        elif prefix + key == "data.mix":
            yield prefix + key, [entry["name"] for entry in value]
            yield from _flat({entry["name"]: entry for entry in value}, f"{prefix}{key}.")
        else:
            yield prefix + key, value
