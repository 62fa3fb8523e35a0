"""A recipe that mixes two corpora of reviews whose columns have other names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import review_helpers

SHORT, LONG = 60, 200  # rows of the corpora


def write_corpora(root: Path) -> Path:
    """`short` has the columns text and label, `long` has review and stars. Each has its own words."""
    draw = random.Random(5)
    for name, rows, columns in (("short", SHORT, ("text", "label")), ("long", LONG, ("review", "stars"))):
        folder = root / name
        folder.mkdir()
        made = [review_helpers.review(draw) for _ in range(rows)]
        lines = [
            json.dumps(dict(zip(columns, (f"{name} {row['text']} {i}", row["label"]), strict=True))) + "\n"
            for i, row in enumerate(made)
        ]
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return review_helpers.write_reviews(root)


def mixed(root: Path, *entries: dict[str, Any], **sections: Any) -> Any:
    """A recipe that mixes these entries, by default both corpora 1 : 2, to the end of the short one."""
    short = {"name": "short", "root": str(root / "short"), "train": "train.jsonl", "weight": 1}
    long = {"name": "long", "root": str(root / "long"), "train": "*.jsonl", "weight": 2, "on_end": "repeat"}
    long["columns"] = {"text": "review", "label": "stars"}
    data = {"train": [], "mix": list(entries) or [short, long]}
    return review_helpers.recipe(root, **{**sections, "data": {**data, **sections.get("data", {})}})
