"""`rankzero track`: upload a run to trackers, or what they lack of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RankzeroError, UsageError
from trainer.recipe import parse_yaml
from trainer.recipe.trackers import LEDGER, TRACKERS, Options, check_installed, check_option, checked_entry, options_of
from trainer.rundir import RunDir
from trainer.tracking.position import exclusive
from trainer.tracking.records import recipe_values
from trainer.tracking.uploader import Uploader, state_of
from trainer.tracking.worker import failure, make_service, without_ranks


def track(run: str | Path, *, to: Sequence[str] | None = None, options: Sequence[str] = ()) -> dict[str, int]:
    """Upload to trackers what they lack of a run. Return the number of lines that each has got.

    Args:
        run: a run directory.
        to: names of trackers; by default those of the run's recipe.
        options: `key=value` of these trackers, in place of the recipe's.

    Raises:
        UsageError: there is no such tracker or option, or a tracker is not installed.
        RankzeroError: a tracker has failed. What it got stays, and the next call continues.
    """
    folder, counts = RunDir(run), {}
    entries = _entries(folder, to, options)
    check_installed(list(entries))
    without_ranks()
    with exclusive(folder):
        for name, given in entries.items():
            uploader = Uploader(folder, name, given, make_service)
            place = uploader.position.path
            again = f"{place} names the run there; move that file away to upload the run as a new one"
            if (begun := place.exists()) and any(text.startswith("project=") for text in options):
                raise UsageError(f"--set project: {name} has this run, in the project of its first upload: {again}")
            try:
                uploader.catch_up(scores=True)
                uploader.finish(state_of(folder))
            except Exception as error:  # trackers have different errors
                raise RankzeroError(failure(name, error) + (f"; {again}" if begun else "")) from error
            counts[name] = uploader.logged
    return counts


def _entries(run: RunDir, to: Sequence[str] | None, options: Sequence[str]) -> dict[str, Options]:
    """Return the options of each tracker. Those of the run's recipe are checked like options of a user."""
    recorded = recipe_values(run).get("track")
    try:
        track = [checked_entry(e) for e in recorded if e != LEDGER] if isinstance(recorded, list) else []
    except ValueError as error:
        raise UsageError(f"{run.recipe}: track: {error}") from None
    known = options_of(track)
    names = to or list(known)
    if not names:
        raise UsageError(f"{run.path}: its recipe lists no tracker; name one: --to mlflow")
    if unknown := [name for name in names if name not in TRACKERS]:
        raise UsageError(f"--to {unknown[0]}: allowed are {', '.join(TRACKERS)}")
    return {name: {**known.get(name, {}), **dict(_option(name, text) for text in options)} for name in names}


def _option(name: str, text: str) -> tuple[str, object]:
    key, equals, given = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: write KEY=VALUE, e.g. project=mt")
    value = parse_yaml(given, f"--set {text}")
    try:
        check_option(TRACKERS[name], key, value)
    except ValueError as error:
        raise UsageError(f"--set {text}: {error}") from None
    return key, value
