"""The command `rankzero verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from trainer.cli_arguments import Overrides, RecipeArgument


def verify_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option("--nproc", metavar="N", min=2, help="ranks; DDP and FSDP2 also run on 4")] = 2,
    engines: Annotated[str | None, typer.Option("--engines", metavar="A,B,…", help="default: all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check on this machine that every engine makes the same steps, and that no row is lost or repeated."""
    from launch.tools.verify.checks import show, verify

    names = [name.strip() for name in engines.split(",")] if engines else None
    checks = verify(recipe, names, nproc, overrides or ())
    passed = all(check.status == "passed" for check in checks)
    if as_json:
        print(json.dumps({"passed": passed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
    raise typer.Exit(0 if passed else 1)
