"""The command `rankzero submit`. What reads recipes is imported when the command runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from trainer.cli_arguments import Config, Overrides, RecipeArgument, ResumeFrom, RunOption
from trainer.errors import UsageError

RESOURCES = (  # keys of `launch` that options of the same name override, in the order of the function below
    *("nodes", "gpus_per_node", "ranks_per_node", "launcher", "cpus_per_task", "memory", "time"),
    *("partition", "account", "qos", "constraint", "mail", "setup", "extra", "chain", "min_nodes"),
)
Gpus = Annotated[str | None, Option("--gpus-per-node", metavar="G", help="a number, or with a type as a100:4")]
Ranks = Annotated[int | None, Option("--ranks-per-node", metavar="R", min=1)]
Time = Annotated[str | None, Option("--time", metavar="T", help="of one attempt, as 12:00:00 or 2-00")]
Array = Annotated[str | None, Option("--array", metavar="SEEDS", help="a run for each, as 1-5 or 1-9%3")]
Follow = Annotated[
    int | None, Option("--chain", metavar="N", min=0, help="follow-up jobs (default: where SLURM does not requeue)")
]
MinNodes = Annotated[
    int | None, Option("--min-nodes", metavar="M", min=1, help="continue with M nodes or more if SLURM loses some")
]
Prepare = Annotated[
    int | None, Option("--prepare", metavar="N", min=1, max=1000, help="prepare the corpus in arrays of N jobs, no run")
]
Out = Annotated[Path | None, Option("--out", metavar="DIR", help="of --prepare (default prepared/NAME)")]
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
    prepare: Prepare = None,
    out: Out = None,
    finalize: Annotated[bool, Option("--finalize", help="evaluate and export in a job on one node")] = False,
    chain: Follow = None,
    min_nodes: MinNodes = None,
    resume_from: ResumeFrom = None,
    after: Annotated[int | None, Option("--after", metavar="JOB", help="begin when that job is done")] = None,
    name: Annotated[str | None, Option("--name", metavar="NAME", help="of the job")] = None,
    templates: Annotated[Path | None, Option("--templates", metavar="DIR", help="your own *.sbatch")] = None,
    throughput: Throughput = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print script and checks, submit nothing")] = False,
) -> None:
    """Train as a SLURM job that survives pre-emption and time limits. First line printed: Submitted batch job N."""
    from launch.slurm.job import make_job, prepare_job
    from launch.slurm.submission import render_all, render_prepare, run_checks, submit_scripts, with_chain

    if resume_from is not None and (other := "--array" if array else "--prepare" if prepare else ""):
        raise UsageError(f"--resume-from with {other}: a mirror has the checkpoints of one run; submit that run alone")
    gpus = int(gpus_per_node) if gpus_per_node and gpus_per_node.isdecimal() else gpus_per_node
    first = (nodes, gpus, ranks_per_node, launcher, cpus_per_task, memory, time)
    rest = (partition, account, qos, constraint, mail, setup, extra, chain, min_nodes)
    given = dict(zip(RESOURCES, (*first, *rest), strict=True))
    if prepare is None:
        job = with_chain(make_job(recipe, overrides or (), given, config, run, name, resume_from), array)
        scripts = render_all(job, array, finalize, templates)
    else:
        job, place = prepare_job(recipe, overrides or (), given, run, name, out)
        scripts = render_prepare(job, place, prepare, templates)
    if dry_run:
        print("\n".join(script.text for script in scripts), end="")
    run_checks(job, scripts, throughput)
    if not dry_run:
        submit_scripts(job, scripts, after)
