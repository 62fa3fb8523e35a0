"""The command `rankzero lint`. The checks are imported when it runs, so that `--help` is fast."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from trainer.completion import recipe_names
from trainer.errors import UsageError


def lint_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE...]",
            help="shipped recipes or YAML files, and overrides for all of them",
            autocompletion=recipe_names,
        ),
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="an override")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="warnings are errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check recipes without starting a run: keys, values, contradictions, files and suspicious values.

    Ends with 0, also with warnings; with 2 for a wrong recipe; with 3 if only data is missing.
    """
    from launch.tools.lint.checks import lint

    recipes = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [*(word for word in words if word not in recipes), *(settings or ())]
    if not recipes:
        raise UsageError("no recipe is named: rankzero lint RECIPE... [KEY=VALUE...]")
    found = [finding for recipe in recipes for finding in lint(recipe, overrides)]
    errors = [finding for finding in found if finding.level == "error"]
    warnings = len(found) - len(errors)
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in found]
        passed = not errors and not (strict and warnings)
        print(json.dumps({"passed": passed, "findings": rows}, indent=2, ensure_ascii=False))
    else:
        for finding in found:
            print(finding)
        counts = {"recipe": len(recipes), "error": len(errors), "warning": warnings}
        print(", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()))
    codes = {finding.code for finding in errors} | ({UsageError.exit_code} if strict and warnings else set())
    raise typer.Exit(min(codes, default=0))
