"""The command `rankzero push`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trainer.rundir import RunDir

OFF = ("", "0", "false", "no")  # values of CI that mean no


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run directory")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name of a model repository of the Hub")],
    public: Annotated[bool, typer.Option("--public", help="everybody may read a new repository")] = False,
    dry_run: Annotated[
        bool | None,
        typer.Option("--dry-run/--no-dry-run", help="only list the files (default where the variable CI is set)"),
    ] = None,
    with_rows: Annotated[
        bool, typer.Option("--with-rows", help="also upload files that quote rows of the data, such as predictions")
    ] = False,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="of the commit (default: run and step)")
    ] = None,
) -> None:
    """Upload model, artifacts, evaluation and card of a finished run to the Hugging Face Hub, or resume an upload."""
    from trainer.push.upload import push_run

    dry = os.environ.get("CI", "").strip().lower() not in OFF if dry_run is None else dry_run
    for line in push_run(RunDir(run), repo, public=public, dry_run=dry, with_rows=with_rows, message=message):
        print(line)
