"""Warnings about surveyed data that a run can be trained on, but that are often a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.engine.token_counts import WARNED, describe_unknown, unknown_fix
from trainer.recipe import Recipe

MANY_CUT = 0.05  # share of rows that data.max_length may cut without a warning
DOUBTED = 0.5  # share of rows with the same peculiarity, from which it is a mistake
SHOWN = 8  # classes that a warning lists
BLOCKS = 4  # times the rows of a lane: a block that holds a sorted file whole in most epochs, since its edges move


def notes(recipe: Recipe, data: Mapping[str, Any]) -> list[str]:
    """Return warnings about bad rows, cut rows, unknown tokens, missing classes, and rows that are also in train.

    Args:
        recipe: of the run.
        data: "data" of the manifest, by split.
    """
    return [note for split, facts in data.items() for note in _notes(recipe, split, facts, data)]


def _notes(recipe: Recipe, split: str, facts: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    tokens, check = facts.get("tokens", {}), facts.get("check", "full")
    rows = facts["rows"] if check == "full" else tokens.get("rows", 0)  # that were looked at
    if check != "full":
        yield _unchecked(split, facts)
    for name, part in facts.get("corpora", {"": facts}).items():
        if part["bad_rows"]:
            yield f"data.{f'mix.{name}.{split}' if name else split}: rows left out: {part['bad_rows']}"
        if found := part.get("unmixed"):
            yield _unmixed(recipe, f"data.{f'mix.{name}.{split}' if name else split}", found, part["rows"])
    if split == "train":
        yield from _short(recipe, facts)
    if shared := facts.get("in_train"):
        yield (
            f"data.{split}: {shared:,} of {rows:,} rows have an input that is also in data.train: scores on them show "
            f"what the model remembers. Take them out of one of the two{_same_files(facts)}"
        )
    for role, cut in tokens.get("cut", {}).items():
        if cut > MANY_CUT * rows:
            limit = cut_by(recipe, role)
            yield (
                f'data.{split}: {cut:,} of {rows:,} rows ({cut / rows:.1%}) are cut in "{role}" to {limit}: raise it, '
                "or divide long texts"
            )
    for role, share in tokens.get("unknown", {}).items():
        if share > WARNED:
            yield f"data.{split}: {describe_unknown(role, share, tokens)}. {unknown_fix(recipe)}"
    for doubt, count in tokens.get("doubts", {}).items():
        if count >= DOUBTED * tokens["unknown_from_rows"]:
            yield f"data.{split}: {count:,} of {tokens['unknown_from_rows']:,} rows {doubt}"
    if check == "full" and data.get("train", {}).get("check", "full") == "full":
        yield from _classes(recipe, split, facts, data)


def _unmixed(recipe: Recipe, key: str, found: Mapping[str, Any], rows: int) -> str:
    """Return which rows have other labels than those before them, as in a file that is sorted by label."""
    more = "" if recipe.data.mix else f"; or set data.block_rows={BLOCKS * -(-rows // recipe.data.lanes)}"
    return (
        f"{key}: label {found['label']!r} is {found['share']:.0%} of rows {found['rows'][0]:,} to {found['rows'][1]:,} "
        f"and {found['before']:.0%} of the rows before them: the files seem sorted by label. Rows are mixed within a "
        "block of each lane only (data.block_rows), so some steps of an epoch see other labels than others. "
        f"`rankzero prepare` shuffles all rows{more}"
    )


def _unchecked(split: str, facts: Mapping[str, Any]) -> str:
    """Return how many rows have been checked before the training."""
    total = "unknown" if facts["rows"] is None else f"{facts['rows']:,}"
    when = "when they are trained on" if split == "train" else "in each evaluation"
    return (
        f"data.{split}: {facts['checked_rows']:,} rows were checked before the training (data.check={facts['check']}, "
        f"rows of the split: {total}); the others are checked {when}"
    )


def _short(recipe: Recipe, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the corpora of `data.mix` that end an epoch before it has its rows."""
    for entry in recipe.data.mix:
        rows = facts["corpora"][entry.name]["rows"]
        if entry.rows_per_epoch and rows and rows < entry.rows_per_epoch and entry.on_end == "stop":
            yield (
                f"data.mix.{entry.name} has {rows:,} rows, fewer than rows_per_epoch={entry.rows_per_epoch:,}: each "
                "epoch ends with its last row. Set on_end: repeat to begin it again"
            )


def cut_by(recipe: Recipe, role: str) -> str:
    """Return the recipe key that limits the length of a role, with its value."""
    own = getattr(recipe.task, "max_target_length", None) if role == "trg" else None
    return f"data.max_length={recipe.data.max_length}" if own is None else f"task.max_target_length={own}"


def _same_files(facts: Mapping[str, Any]) -> str:
    files = facts.get("files_in_train") or []
    return f"; both splits read {', '.join(files[:SHOWN])}" if files else ""


def _classes(recipe: Recipe, split: str, facts: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    names: dict[str, str] = getattr(recipe.task, "labels", {})
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("train", split)}  # split -> rows by class
    for name, rows in counts.items():
        for value, count in data.get(name, {}).get("labels", {}).items():
            rows[names.get(value, value)] += count
    missing = [name for name in dict.fromkeys(names.values()) if not counts[split][name]]
    if not names or not missing:
        return
    if len(counts[split]) == 1 and counts[split].total() == facts["rows"]:
        [(only, count)] = counts[split].items()
        effect = "a model can learn nothing but to answer it" if split == "train" else "scores say little"
        yield f"data.{split}: all {count:,} rows are of one class, {only!r}: {effect}"
        return
    shown = ", ".join(f"{name!r} ({counts['train'][name]:,} in data.train)" for name in missing[:SHOWN])
    if split == "train":
        shown = ", ".join(map(repr, missing[:SHOWN]))
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    share = recipe.data.validation if split == "validation" and isinstance(recipe.data.validation, float) else None
    fix = "" if share is None else f": the share data.validation={share:g}, drawn by hash, is too small. Raise it"
    yield f"data.{split}: no row of class {shown}{more}{fix}"
