"""Arguments and options that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from trainer.completion import config_names, recipe_keys, recipe_names, run_directories
from trainer.errors import UsageError

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="name of a shipped recipe, or path of a YAML file", autocompletion=recipe_names
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.lr=3e-4 seed=2", autocompletion=recipe_keys),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory", autocompletion=run_directories)]
RunOption = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="run directory (default runs/NAME)")]
Fresh = Annotated[bool, typer.Option("--fresh", help="start from step 0; an existing run is kept under another name")]
AllowChange = Annotated[list[str] | None, typer.Option("--allow-change", metavar="KEY", help="may differ from before")]
Debug = Annotated[bool, typer.Option("--debug", help="one process, a slice, deterministic, anomaly detection, eager")]
Defer = Annotated[bool, typer.Option("--defer", help="leave evaluation, export and report to a later start")]
Profile = Annotated[bool, typer.Option("--profile", help="write a torch profiler trace (profile.json) into the run")]
ResumeFrom = Annotated[
    str | None,
    typer.Option(
        "--resume-from", metavar="URL", help="begin with the newest checkpoint of a mirror (loop.mirror/NAME)"
    ),
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME", help="an Accelerate config: name or path", autocompletion=config_names),
]


def part_of(text: str | None) -> tuple[str, int, int] | None:
    """Return stage, number from 0 and count of a part such as read:1/8."""
    if text is None:
        return None
    found = re.fullmatch(r"(read|deal|write):(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[2]) <= int(found[3]):
        raise UsageError(f"--part {text!r}: write a stage (read, deal, write), a number and how many: read:1/8")
    return found[1], int(found[2]) - 1, int(found[3])
