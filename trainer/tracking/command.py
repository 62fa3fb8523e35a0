"""`rankzero track`. Torch is imported when it runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import trainer


def track_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="NAME", help="a tracker; default: those of the recipe")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="an option of the tracker, e.g. project=mt")
    ] = None,
) -> None:
    """Upload metrics, recipe, evaluations and report of a run to trackers, or what they lack of it."""
    for name, count in trainer.track(run, to=to, options=options or []).items():
        print(f"{name}: {count} {'line' if count == 1 else 'lines'} uploaded")
