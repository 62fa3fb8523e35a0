"""The command `rankzero push`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.rundir import RunDir

if TYPE_CHECKING:
    from trainer.push.files import Upload

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
    from trainer.push.files import uploads
    from trainer.push.upload import push

    folder = RunDir(run)
    files = uploads(folder, repo, with_rows=with_rows)
    if os.environ.get("CI", "").strip().lower() not in OFF if dry_run is None else dry_run:
        for line in listing(files):
            print(line)
        print(f"dry run: nothing was uploaded to {repo}; --no-dry-run uploads these files")
        return
    url, changed, removed = push(folder, repo, files, public=public, message=message)
    for name in removed:
        print(f"removed from {repo}: {name}")
    print(f"pushed: {url}" if changed else f"unchanged: {url} has these files")


def listing(files: list[Upload]) -> list[str]:
    """Return a line for each file and their total size."""
    total = sum(file.bytes for file in files)
    lines = [f"{file.bytes:>14,}  {file.path}" for file in files]
    return [*lines, f"{total:>14,}  bytes in {len(files)} files"]
