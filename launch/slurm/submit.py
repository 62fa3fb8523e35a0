"""`rankzero submit`: render the scripts of a run, check them, and submit them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from trainer.cli import Config, Overrides, RecipeArgument, RunOption
from trainer.errors import UsageError
from trainer.files import write_atomically, write_json
from trainer.redaction import redacted
from trainer.rundir import git_commit

if TYPE_CHECKING:
    from launch.slurm.job import Job


@dataclass(frozen=True)
class Script:
    """A rendered script, the path where it is kept, and for an array the run of each seed."""

    path: Path
    kind: str
    text: str
    runs: Mapping[int, Path] = field(default_factory=dict)


RESOURCES = (  # keys of `launch` that options of the same name override, in the order of the function below
    *("nodes", "gpus_per_node", "ranks_per_node", "launcher", "cpus_per_task", "memory", "time"),
    *("partition", "account", "qos", "constraint", "mail", "setup", "extra"),
)
Gpus = Annotated[str | None, Option("--gpus-per-node", metavar="G", help="a number, or with a type as a100:4")]
Ranks = Annotated[int | None, Option("--ranks-per-node", metavar="R", min=1)]
Time = Annotated[str | None, Option("--time", metavar="T", help="of one attempt, as 12:00:00 or 2-00")]
Array = Annotated[str | None, Option("--array", metavar="SEEDS", help="a run for each, as 1-5 or 1-9%3")]
Throughput = Annotated[float | None, Option(metavar="TOKENS", help="per second and rank, for the hours")]


def submit_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    config: Config = None,
    nodes: Annotated[int | None, Option("--nodes", metavar="N", min=1)] = None,
    gpus_per_node: Gpus = None,
    ranks_per_node: Ranks = None,
    launcher: Annotated[str | None, Option(help="node: one per node starts its ranks; task: one task per rank")] = None,
    cpus_per_task: Annotated[int | None, Option("--cpus-per-task", metavar="C", min=1)] = None,
    memory: Annotated[str | None, Option("--memory", metavar="M", help="of a node, as 64G")] = None,
    time: Time = None,
    partition: Annotated[str | None, Option("--partition", metavar="P")] = None,
    account: Annotated[str | None, Option("--account", metavar="A")] = None,
    qos: Annotated[str | None, Option("--qos", metavar="Q")] = None,
    constraint: Annotated[str | None, Option("--constraint", metavar="C", help="features of nodes")] = None,
    mail: Annotated[str | None, Option("--mail", metavar="ADDRESS", help="at the end, failures, requeues")] = None,
    setup: Annotated[list[str] | None, Option("--setup", metavar="LINE", help="shell line before it")] = None,
    extra: Annotated[list[str] | None, Option("--sbatch", metavar="OPTION", help="one more #SBATCH line")] = None,
    run: RunOption = None,
    array: Array = None,
    finalize: Annotated[bool, Option("--finalize", help="evaluate and export in a job on one node")] = False,
    after: Annotated[int | None, Option("--after", metavar="JOB", help="begin when that job is done")] = None,
    name: Annotated[str | None, Option("--name", metavar="NAME", help="of the job")] = None,
    templates: Annotated[Path | None, Option("--templates", metavar="DIR", help="your own *.sbatch")] = None,
    throughput: Throughput = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print script and checks, submit nothing")] = False,
) -> None:
    """Train as a SLURM job that survives pre-emption and time limits. First line printed: Submitted batch job N."""
    from launch.slurm.job import make_job

    gpus = int(gpus_per_node) if gpus_per_node and gpus_per_node.isdecimal() else gpus_per_node
    first = (nodes, gpus, ranks_per_node, launcher, cpus_per_task, memory, time)
    rest = (partition, account, qos, constraint, mail, setup, extra)
    job = make_job(recipe, overrides or (), dict(zip(RESOURCES, (*first, *rest), strict=True)), config, run, name)
    scripts = render_all(job, array, finalize, templates)
    if dry_run:
        print("\n".join(script.text for script in scripts), end="")
    run_checks(job, scripts, throughput)
    if not dry_run:
        submit_scripts(job, scripts, after)


def render_all(job: Job, array: str | None, finalize: bool, templates: Path | None) -> list[Script]:
    """Render the scripts of a run: its training or an array of seeds, and then the job that depends on it."""
    from launch.slurm.arrays import array_values, compare_values, seeds_of
    from launch.slurm.render import render

    home = job.run / "slurm"
    if array is not None:
        seeds = seeds_of(array)
        runs = {seed: job.run.with_name(f"{job.run.name}-seed-{seed}") for seed in seeds}
        text = render("array.sbatch", array_values(job, array), templates)
        last = render("finalize.sbatch", compare_values(job, list(runs.values())), templates)
        return [
            Script(home / "array.sbatch", "array", text, runs),
            Script(home / "finalize.sbatch", "compare", last),
        ]
    text = render("train.sbatch", job.values() | {"options": ("--defer",) if finalize else ()}, templates)
    scripts = [Script(home / "train.sbatch", "train", text)]
    if finalize:
        last = render("finalize.sbatch", job.finalize_values(), templates)
        scripts.append(Script(home / "finalize.sbatch", "finalize", last))
    return scripts


def run_checks(job: Job, scripts: Sequence[Script], throughput: float | None) -> None:
    """Print the results of the checks to stderr.

    Raises:
        UsageError: one has failed.
    """
    from launch.slurm.checks import checks

    refused = []
    for check in checks(job, [script.text for script in scripts], throughput):
        fix = f" -> {check.fix}" if check.fix else ""
        print(f"{check.status:8s} {check.name:8s} {check.found}{fix}", file=sys.stderr)
        if check.status == "failed":
            refused.append(f"{check.name}: {check.problem or check.found}{fix}")
    if refused:
        raise UsageError("not submitted: " + "; ".join(refused))


def submit_scripts(job: Job, scripts: Sequence[Script], after: int | None) -> None:
    """Write the scripts to the run directory and submit them. Each one depends on the one before.

    Raises:
        UsageError: the run has a job already, or SLURM refuses.
    """
    from launch.slurm import queue
    from launch.slurm.follow import active, record_job

    if after is None and (busy := active(job.run)):
        raise UsageError(
            f"{job.run} has job {busy[0].job} ({busy[0].state}) already: rankzero cancel, or another --run"
        )
    for script in scripts:
        for folder in (script.path.parent, *(run / "slurm" for run in script.runs.values())):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(script.path, script.text)
    freeze(job)
    for script in scripts:
        number = queue.submit(script.path, dependency(after, failed_too=script.kind == "compare"))
        record_job(job.run, str(number), script.kind)
        for seed, run in script.runs.items():
            record_job(run, f"{number}_{seed}", script.kind)
        if script is scripts[0]:
            print(f"Submitted batch job {number}")
        else:
            print(f"{script.kind}: job {number}, after job {after}")
        after = number
    print(f"run directory: {job.run}\nscripts: {', '.join(str(script.path) for script in scripts)}")


def freeze(job: Job) -> None:
    """Write the resolved recipe and the Accelerate config to RUN/slurm, with the command and the git commit."""
    (job.run / "slurm").mkdir(parents=True, exist_ok=True)
    for path, text in job.frozen.items():
        write_atomically(path, text)
    submitted = {
        "command": redacted(list(job.command)),
        "folder": str(job.folder),
        "recipe": job.words[0],
        "config": job.plan.config,
        "launch": redacted(job.recipe.launch.model_dump(mode="json")),
        "git_commit": git_commit(),
    }
    write_json(job.run / "slurm" / "submitted.json", submitted)


def dependency(after: int | None, *, failed_too: bool = False) -> list[str]:
    """Return options for sbatch: begin after job `after` has succeeded, or with `failed_too` has ended."""
    if after is None:
        return []
    return [f"--dependency={'afterany' if failed_too else 'afterok'}:{after}", "--kill-on-invalid-dep=yes"]
