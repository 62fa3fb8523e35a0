"""`rankzero`: the commands of `python -m trainer`, and those that start and watch ranks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.configs import Machines
from launch.local import RestartOptions, start
from launch.slurm.follow import cancel_command, logs_command, status_command
from launch.slurm.submit import submit_command
from launch.sweep.command import sweep_command
from launch.tools.doctor.command import doctor_command
from launch.tools.lint.command import lint_command
from launch.tools.plan.command import plan_command
from launch.tools.verify.command import verify_command
from trainer import cli
from trainer.cli_arguments import (
    AllowChange,
    Config,
    Debug,
    Defer,
    Fresh,
    Overrides,
    Profile,
    RecipeArgument,
    ResumeFrom,
    RunOption,
)
from trainer.errors import UsageError
from trainer.run_options import Options, run_path

MACHINES = "machines on which this command is started, each with its rank and the same other words"
Restarts = Annotated[
    int,
    typer.Option(
        "--restarts", metavar="N", min=0, help="after a failure, at most N in a row without a newer checkpoint"
    ),
]
MinRanks = Annotated[
    int | None, typer.Option("--min-ranks", metavar="M", min=1, help="restarts may use fewer ranks, at least M")
]

app = typer.Typer(
    name="rankzero",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train Transformers on any number of ranks with the same steps, and export checked models.",
)


OF_LAUNCHER = (  # options that the ranks do not know
    "--config", "--nproc", "--restarts", "--min-ranks", "--machines", "--machine-rank", "--main-address",
)  # fmt: skip


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
    machines: Annotated[int | None, typer.Option("--machines", metavar="N", min=1, help=MACHINES)] = None,
    machine_rank: Annotated[
        int | None, typer.Option("--machine-rank", metavar="R", min=0, help="this machine, from 0")
    ] = None,
    main_address: Annotated[
        str | None, typer.Option("--main-address", metavar="HOST[:PORT]", help="machine 0, port 29500 by default")
    ] = None,
    run: RunOption = None,
    fresh: Fresh = False,
    allow_change: AllowChange = None,
    debug: Debug = False,
    profile: Profile = False,
    defer: Defer = False,
    restarts: Restarts = 0,
    min_ranks: MinRanks = None,
    resume_from: ResumeFrom = None,
) -> None:
    """Train, or resume from the newest checkpoint, then evaluate, export and report."""
    from trainer.recipe_loading import load_recipe

    options = Options(run, fresh, tuple(allow_change or ()), debug, profile, defer)
    resolved = load_recipe(recipe, overrides or ())  # report every mistake before anything starts

    def in_process() -> int:
        return cli.run_app(
            lambda: cli.train(recipe, overrides, run, fresh, allow_change, debug, profile, defer, resume_from)
        )

    if debug:  # one process, whatever the config says
        config, nproc, restarts, min_ranks = "debug", None, 0, None
    fuse, hang = resolved.loop.fused_before_measuring, resolved.launch.hang_seconds
    again = RestartOptions(restarts, min_ranks, resolved.data.lanes, fuse, hang)
    place = _machines(machines, machine_rank, main_address)
    code = start(config, nproc, _arguments(), run_path(resolved, options), in_process, again, place)
    raise typer.Exit(code)


def _machines(number: int | None, rank: int | None, address: str | None) -> Machines | None:
    """Return the place of this machine among several.

    Raises:
        UsageError: one of the three options is missing, or the rank is too large.
    """
    if number is None and rank is None and address is None:
        return None
    if number is None or rank is None or address is None:
        options = {"--machines": number, "--machine-rank": rank, "--main-address": address}
        missing = ", ".join(name for name, value in options.items() if value is None)
        raise UsageError(f"several machines need {', '.join(options)}; missing: {missing}")
    if rank >= number:
        raise UsageError(f"--machine-rank {rank}: allowed: 0 to {number - 1}, another on each machine")
    return Machines(number, rank, address) if number > 1 else None


def _arguments() -> list[str]:
    """Return the command line without the options that only the launcher reads."""
    kept, skip = [], False
    for word in sys.argv[1:]:
        if skip:
            skip = False
        elif word in OF_LAUNCHER:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in OF_LAUNCHER)):
            kept.append(word)
    return kept


app.command("verify")(verify_command)
app.command("plan")(plan_command)
app.command("lint")(lint_command)
app.command("doctor")(doctor_command)
app.command("sweep")(sweep_command)
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
