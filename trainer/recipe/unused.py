"""Keys that only some values of other keys use. No torch here."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from trainer.recipe.sections import Section, is_changed

if TYPE_CHECKING:
    from trainer.recipe.parsing import Recipe

WITH_WARMUP = ("constant", "linear", "cosine", "inverse_sqrt", "noam", "plateau")
# Key -> (the key that decides, its values with which the first key is used).
USED_BY: dict[str, tuple[str, tuple[object, ...]]] = {
    "optim.betas": ("optim.name", ("adamw", "muon", "adamw8bit")),
    "optim.eps": ("optim.name", ("adamw", "muon", "adamw8bit")),
    "optim.momentum": ("optim.name", ("sgd",)),
    "optim.nesterov": ("optim.name", ("sgd",)),
    "optim.warmup_steps": ("optim.schedule", WITH_WARMUP),
    "optim.warmup_ratio": ("optim.schedule", WITH_WARMUP),
    "optim.cut_fraction": ("optim.schedule", ("slanted_triangular",)),
    "optim.ratio": ("optim.schedule", ("slanted_triangular",)),
    "optim.plateau": ("optim.schedule", ("plateau",)),
    "optim.adversarial.epsilon": ("optim.adversarial.kind", ("fgm", "noise")),
    "optim.adversarial.weight": ("optim.adversarial.kind", ("fgm", "noise")),
    "optim.averaging.last": ("optim.averaging.kind", ("last",)),
    "optim.averaging.decay": ("optim.averaging.kind", ("ema",)),
    "data.max_bad_fraction": ("data.on_bad_row", ("skip",)),
    "loop.max_nonfinite": ("loop.on_nonfinite", ("skip",)),
}


def unused_keys(recipe: Recipe) -> dict[str, str]:
    """Return keys that differ from the default and that the recipe does not use, each with what would use it."""
    return {
        key: f"{chooser}: {' or '.join(map(str, users))}"
        for key, (chooser, users) in USED_BY.items()
        if getattr(*_section_of(recipe, chooser)) not in users and is_changed(*_section_of(recipe, key))
    }


def _section_of(recipe: Recipe, key: str) -> tuple[Section, str]:
    """Return the section of a dotted key, and its last part."""
    *path, last = key.split(".")
    return reduce(getattr, path, recipe), last
