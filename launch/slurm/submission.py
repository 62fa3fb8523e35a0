"""Render the scripts of a job, check them, and submit them to SLURM."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.slurm import queue
from launch.slurm.arrays import array_values, compare_values, prepare_values, seeds_of
from launch.slurm.chain import submit_chain
from launch.slurm.checks import checks
from launch.slurm.follow import active, record_job
from launch.slurm.job import Job
from launch.slurm.render import render
from trainer.errors import UsageError
from trainer.files import write_atomically, write_json
from trainer.redaction import redacted
from trainer.rundir import git_commit

AUTO_CHAIN = 5  # follow-up jobs of `launch.chain: auto` where SLURM does not requeue


@dataclass(frozen=True)
class Script:
    """A rendered script, the path where it is kept, and for an array the run of each seed."""

    path: Path
    kind: str
    text: str
    runs: Mapping[int, Path] = field(default_factory=dict)


def with_chain(job: Job, array: str | None) -> Job:
    """Return the job with its number of follow-up jobs.

    Raises:
        UsageError: `--chain` is given together with `--array`.
    """
    asked = job.recipe.launch.chain
    if array is None:
        if asked == "auto":
            asked = AUTO_CHAIN if queue.no_requeue(job.recipe.launch.partition) else 0
        return replace(job, chain=asked)
    if asked not in ("auto", 0):
        raise UsageError(f"--chain {asked} with --array: submit each seed alone, with seed=N and --run")
    return job


def render_all(job: Job, array: str | None, finalize: bool, templates: Path | None) -> list[Script]:
    """Render the scripts of a run: its training or an array of seeds, and then the job that depends on it."""
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
    values = job.values()
    own = {"options": (*values["options"], *(("--defer",) if finalize else ())), "requeue": not job.chain}
    text = render("train.sbatch", values | own, templates)
    scripts = [Script(home / "train.sbatch", "train", text)]
    if finalize:
        last = render("finalize.sbatch", job.finalize_values(), templates)
        scripts.append(Script(home / "finalize.sbatch", "finalize", last))
    return scripts


def render_prepare(job: Job, out: Path, tasks: int, templates: Path | None) -> list[Script]:
    """Render an array for each stage of `rankzero prepare`, and the job that publishes the corpus."""
    scripts = []
    for stage, of_stage in (("read", tasks), ("deal", tasks), ("write", tasks), ("publish", 0)):
        text = render("prepare.sbatch", prepare_values(job, out, stage, of_stage), templates)
        scripts.append(Script(job.run / "slurm" / f"prepare-{stage}.sbatch", f"prepare-{stage}", text))
    return scripts


def run_checks(job: Job, scripts: Sequence[Script], throughput: float | None) -> None:
    """Print the results of the checks to stderr.

    Raises:
        UsageError: one has failed.
    """
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
    if after is None and (busy := active(job.run)):
        raise UsageError(
            f"{job.run} has job {busy[0].job} ({busy[0].state}) already: rankzero cancel, or another --run"
        )
    for script in scripts:
        for folder in (script.path.parent, *(run / "slurm" for run in script.runs.values())):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(script.path, script.text)
    freeze(job)
    before = [after] if after is not None else []
    for script in scripts:
        number = queue.submit(script.path, dependency(before, failed_too=script.kind == "compare"))
        record_job(job.run, str(number), script.kind)
        for seed, run in script.runs.items():
            record_job(run, f"{number}_{seed}", script.kind)
        if script is scripts[0]:
            print(f"Submitted batch job {number}")
        else:
            print(f"{script.kind}: job {number}, after job {' or '.join(map(str, before))}")
        following = list(submit_chain(job, script.path, number, after)) if script.kind == "train" and job.chain else []
        for one in following:
            record_job(job.run, str(one), f"follow-up-{script.kind}")
        if following:
            print(f"follow-up: jobs {', '.join(map(str, following))}, each if the one before does not end the run")
        before = [number, *following]
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
        "site": {str(path): keys for path, keys in job.site.keys.items()},
        "chain": job.chain,
        "resume_from": job.resume_from,
        "git_commit": git_commit(),
    }
    write_json(job.run / "slurm" / "submitted.json", submitted)


def dependency(before: Sequence[int], *, failed_too: bool = False) -> list[str]:
    """Return options for sbatch: begin after one of these jobs has succeeded, or with `failed_too` has ended."""
    if not before:
        return []
    kind = "afterany" if failed_too else "afterok"
    return [f"--dependency={'?'.join(f'{kind}:{job}' for job in before)}", "--kill-on-invalid-dep=yes"]
