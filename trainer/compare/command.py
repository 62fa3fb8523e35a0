"""The command `rankzero compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import UsageError


def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="run directories; others are compared with the first one")
    ],
    split: Annotated[str, typer.Option("--split", metavar="S", help="validation or test")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="also write a page, in new folders if need be")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="compare on the rows that all runs have, if others were evaluated, too")
    ] = False,
    no_rows: Annotated[bool, typer.Option("--no-rows", help="leave out texts and predictions of rows")] = False,
) -> None:
    """Compare evaluated runs on the same rows: differences with intervals and tests, recipes, rows, learning curves."""
    from trainer.compare.page import write_outputs

    if split not in ("validation", "test"):
        raise UsageError(f"--split {split}: allowed are validation and test")
    write_outputs(runs, split, as_json=as_json, html=html, common=common, with_rows=not no_rows)
