"""The options of a start besides the recipe, and the result of a run. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, last step, and the scores of each evaluated split."""

    path: Path
    step: int
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What a command or a program adds to a recipe without changing a step.

    `rows`: of a program, by split. `resume_from`: a mirror, see `loop.mirror`.
    """

    run: Path | None = None
    fresh: bool = False
    allow_change: Sequence[str] = ()
    debug: bool = False
    profile: bool = False
    defer: bool = False
    rows: Mapping[str, Any] | None = None
    resume_from: str | None = None

    @property
    def restart(self) -> bool:
        """Whether the run starts at step 0 even if its directory has checkpoints."""
        return self.fresh or (self.debug and self.run is None)


def run_path(recipe: Recipe, options: Options) -> Path:
    """Return `--run`, or runs/<name> below the working directory.

    Raises:
        UsageError: that is a file.
    """
    path = options.run or Path("runs") / (f"{recipe.name}-debug" if options.debug else recipe.name)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"--run {path}: {place} is a file; choose another folder for the run directory")
    return path
