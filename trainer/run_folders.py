"""Find run directories and folders of sweeps in a folder. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SWEEP = "sweep.json"  # in the folder of a sweep
FILES = ("recipe.yaml", "manifest.json", "status.json", SWEEP, "slurm/jobs")  # a run or sweep has at least one
MOST_DEPTH = 3  # folders below the one that is searched


def is_sweep(path: Path) -> bool:
    return (path / SWEEP).is_file()


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory or the folder of a sweep, also one whose jobs only wait."""
    try:
        return any((path / name).is_file() for name in FILES)
    except OSError:  # a folder of another user
        return False


def runs_below(folder: Path, depth: int = MOST_DEPTH) -> Iterator[Path]:
    """Yield a run or sweep, or else those in its folders, in order. Nothing within a run or sweep is searched."""
    if not folder.is_dir():
        return
    if is_run(folder):
        yield folder
    elif depth:
        try:
            inner = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_order)
        except OSError:
            return
        for path in inner:
            yield from runs_below(path, depth - 1)


def nearest_below(run: Path, rest: Path) -> Path:
    """Return the run at a path below the folder of a sweep if it is there, else the folder."""
    return run / rest if is_run(run / rest) else run


def _order(path: Path) -> tuple[bool, int, str]:
    """Sort trials, whose names are numbers, by number."""
    number = path.name.isdecimal()
    return not number, int(path.name) if number else 0, path.name
