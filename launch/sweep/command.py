"""The command `rankzero sweep`. What reads recipes is imported when the command runs, so that `--help` is fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from trainer.cli_arguments import Config, Overrides, RecipeArgument
from trainer.errors import UsageError


def sweep_command(
    recipe: RecipeArgument,
    space: Annotated[Path, Argument(metavar="SWEEP", help="YAML file: what is varied, and how")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="folder of the sweep (default runs/NAME-sweep, by the name in the recipe)"),
    ] = None,
    jobs: Annotated[int, Option("--jobs", metavar="N", min=1, help="trials at a time")] = 1,
    config: Config = None,
    nproc: Annotated[int | None, Option("--nproc", metavar="N", min=1, help="ranks of each trial")] = None,
    top: Annotated[int, Option("--top", metavar="K", min=0, help="retrain the best K trials, with artifacts")] = 0,
    seeds: Annotated[str, Option("--seeds", metavar="SEEDS", help="of --top, as 1-3 or 1,5,9")] = "1-3",
    slurm: Annotated[bool, Option("--slurm", help="each trial is a task of an array of jobs")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="with --slurm: print scripts and checks only")] = False,
) -> None:
    """Train a recipe with many settings (grid, random, TPE). Select on validation. The same command resumes."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("rankzero sweep needs Optuna: pip install 'rankzero[sweep]'")
    from launch.sweep.run import run_sweep

    top_of = {"top": top, "seeds": seeds}
    run_sweep(recipe, overrides or [], space, out, jobs, config, nproc, top_of, slurm=slurm, dry_run=dry_run)
