"""`rankzero`: the commands of `python -m trainer`, and those that start and watch ranks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.local import start
from launch.slurm.follow import cancel_command, logs_command, status_command
from launch.slurm.submit import submit_command
from launch.tools.doctor.command import doctor_command
from launch.tools.plan.command import plan_command
from launch.tools.verify.command import verify_command
from trainer import cli
from trainer.cli import AllowChange, Config, Debug, Fresh, Overrides, Profile, RecipeArgument, ResumeFrom, RunOption
from trainer.run_options import Options, run_path

app = typer.Typer(
    name="rankzero",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train Transformers on any number of ranks with the same steps, and export checked models.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"rankzero {version('rankzero')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


@app.command("train")
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    config: Config = None,
    nproc: Annotated[
        int | None, typer.Option("--nproc", metavar="N", min=1, help="ranks (default: the config's)")
    ] = None,
    run: RunOption = None,
    fresh: Fresh = False,
    allow_change: AllowChange = None,
    debug: Debug = False,
    profile: Profile = False,
    resume_from: ResumeFrom = None,
) -> None:
    """Train, or resume from the newest checkpoint, then evaluate, export and report."""
    from trainer.recipe_loading import load_recipe

    options = Options(run, fresh, tuple(allow_change or ()), debug, profile)
    resolved = load_recipe(recipe, overrides or ())  # report every mistake before anything starts

    def in_process() -> int:
        return cli.run_app(
            lambda: cli.train(recipe, overrides, run, fresh, allow_change, debug, profile, resume_from=resume_from)
        )

    if debug:  # one process, whatever the config says
        config, nproc = "debug", None
    code = start(config, nproc, _arguments(), run_path(resolved, options), in_process)
    raise typer.Exit(code)


def _arguments() -> list[str]:
    """Return the command line without the options that only the launcher reads."""
    kept, skip = [], False
    for word in sys.argv[1:]:
        if skip:
            skip = False
        elif word in ("--config", "--nproc"):
            skip = True
        elif not word.startswith(("--config=", "--nproc=")):
            kept.append(word)
    return kept


app.command("verify")(verify_command)
app.command("plan")(plan_command)
app.command("doctor")(doctor_command)
app.command("submit")(submit_command)
app.command("status")(status_command)
app.command("logs")(logs_command)
app.command("cancel")(cancel_command)

for command in cli.app.registered_commands:
    if command.name != "train":
        app.registered_commands.append(command)


def main() -> None:
    """Run the `rankzero` command."""
    sys.exit(cli.run_app(app))
