"""Check a job before it is submitted. A failure refuses it, a warning does not."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from datetime import timedelta

from launch.findings import Check, Findings, existing_folder, size
from launch.slurm import queue
from launch.slurm.job import Job, gpu_count, seconds
from launch.slurm.lint import conflicts, lint, syntax_error
from trainer.data_parallel import fusable
from trainer.engine.remote_folder import RemoteFolder
from trainer.errors import RankzeroError
from trainer.files import read_json
from trainer.redaction import redacted
from trainer.rundir import RunDir

SLURM_LATE = 60  # seconds by which SLURM may send the signal early
MIRROR_SECONDS = 10.0  # for which a mirror is asked again after an error


def checks(job: Job, scripts: Sequence[str], throughput: float | None) -> Iterator[Check]:
    """Yield the checks of a job and its scripts one by one, because the last ones may take seconds."""
    yield _lanes(job)
    yield _gpus(job)
    hours, checkpoint = _planned(job, throughput)
    yield _time(job, hours)
    yield _grace(job)
    yield _disk(job, checkpoint)
    yield _partition(job)
    yield _chain(job)
    yield Check("site", "ok", job.site.describe())
    yield _finished(job)
    if job.resume_from is not None:
        yield _mirror(job, job.resume_from)
    yield _options(job)
    yield _lint(scripts)
    yield _test_only(scripts)


def _lanes(job: Job) -> Check:
    findings = Findings("lanes")
    lanes, ranks, fuse = job.recipe.data.lanes, job.plan.ranks or 1, job.recipe.loop.fused_before_measuring
    findings.fact(f"{lanes} lanes for {ranks} ranks ({job.recipe.launch.nodes} nodes x {job.ranks_per_node})")
    fewer = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0 and fuse in fusable(lanes, n))
    if ranks > lanes:
        findings.fail(
            "each rank needs a lane", f"fewer ranks ({fewer}), or data.lanes={ranks}, which changes the steps"
        )
    elif fuse not in fusable(lanes, ranks):
        findings.fail(f"loop.fuse_lanes={fuse} does not divide the lanes of a rank", f"use one of {fewer} ranks")
    elif lanes % ranks:
        findings.warn("the number of ranks does not divide the lanes: some ranks idle", f"better: {fewer} ranks")
    return findings.check()


def _gpus(job: Job) -> Check:
    findings = Findings("GPUs")
    gpus, plan = gpu_count(job.recipe.launch), job.plan
    findings.fact(
        f"config {plan.config}: {plan.engine} on {'CPUs' if plan.cpu else 'GPUs'}; {gpus or 'no'} GPUs per node"
    )
    if plan.note:
        findings.fact(plan.note)
    if plan.cpu and gpus:
        findings.warn("the GPUs would idle", "use a config for GPUs, such as ddp, or omit --gpus-per-node")
    elif gpus and job.ranks_per_node < gpus:
        findings.warn(f"{gpus - job.ranks_per_node} GPUs of each node would idle", f"launch.ranks_per_node={gpus}")
    return findings.check()


def _planned(job: Job, throughput: float | None) -> tuple[float | None, int | None]:
    """Return the hours of training and the bytes of checkpoints, if a speed is known to `rankzero plan`."""
    run = RunDir(job.run)
    if throughput is None and not run.metrics.exists():
        return None, None
    from launch.tools.plan.planner import PlanOptions, make_plan

    try:
        ranks = job.plan.ranks or 1
        options = PlanOptions(ranks=[ranks], throughput=throughput, cpu=job.plan.cpu, run=job.run)
        plan = make_plan(job.recipe, (), options)
    except (RankzeroError, OSError, ImportError):  # only an estimate: the run itself reports what is wrong
        return None, None
    return plan.configurations[0].hours, plan.checkpoint["on_disk"]


def _time(job: Job, hours: float | None) -> Check:
    findings, launch = Findings("time"), job.recipe.launch
    limit = seconds(launch.time)
    each = "no limit" if limit is None else f"{timedelta(seconds=limit)}"
    idle = f"requeued as long as it makes progress (launch.requeue_limit={launch.requeue_limit} starts without)"
    again = f"{job.chain} follow-up jobs" if job.chain else idle
    findings.fact(f"{each} for each attempt, {again}")
    if limit is not None and limit <= launch.signal_lead + SLURM_LATE:
        fix = f"a longer --time, or launch.signal_lead below {max(1, limit - SLURM_LATE)}"
        findings.fail(f"the signal to save comes {launch.signal_lead} s before the end: no time to train", fix)
    elif hours is None:
        findings.fact("the hours are unknown until the run has a measured speed; --throughput sets one")
    elif limit is None:
        findings.fact(f"training takes about {hours:.1f} h")
    else:
        attempts = math.ceil(hours * 3600 / (limit - launch.signal_lead))
        between = "each in a job of the chain" if job.chain else "requeued in between"
        count = "1 attempt" if attempts == 1 else f"{attempts} attempts, {between}"
        findings.fact(f"training takes about {hours:.1f} h: {count}")
        if job.chain and attempts > job.chain + 1:
            findings.warn("more attempts than jobs in the chain", f"--chain {attempts - 1}, or a longer --time")
    return findings.check()


def _grace(job: Job) -> Check:
    """Compare the time between the signal and the end with the time between the first and last file of a checkpoint."""
    findings, lead = Findings("grace"), job.recipe.launch.signal_lead
    times = [[file.stat().st_mtime for file in c.iterdir()] for c in job.run.glob("checkpoints/step-*")]
    saves = [max(of_one) - min(of_one) for of_one in times if of_one]
    if not saves:
        findings.fact(f"{lead} s to save; not measured yet (`rankzero doctor` measures the disk)")
        return findings.check()
    save = statistics.median(saves)
    findings.fact(f"{lead} s to save, which took about {save:.1f} s after the first file")
    if save * 3 > lead:  # the first file, the end of a step, and perhaps an earlier save
        findings.warn("little time to save", f"launch.signal_lead={math.ceil(save * 4)}")
    return findings.check()


def _disk(job: Job, expected: int | None) -> Check:
    findings = Findings("disk")
    folder = existing_folder(job.run)
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if expected is None:
        one = max((sum(f.stat().st_size for f in c.iterdir()) for c in job.run.glob("checkpoints/step-*")), default=0)
        keep = job.recipe.loop.keep
        expected = one * (2 + (keep if keep != "all" else len(list(job.run.glob("checkpoints/step-*")))))
    findings.fact(f"{size(free)} free at {folder}" + (f", checkpoints take {size(expected)}" if expected else ""))
    if not os.access(folder, os.W_OK):
        findings.fail("not writable", "choose another --run")
    if free < expected:
        findings.warn("too little for the checkpoints", "free space, lower loop.keep, or choose another --run")
    return findings.check()


def _partition(job: Job) -> Check:
    """Compare `launch.time` and `launch.signal_lead` with the limits of the partition."""
    findings, launch = Findings("limits"), job.recipe.launch
    for name, limit in (queue.partitions(launch.partition) if queue.here() else {}).items():
        longest, asked = limit.get("MaxTime", "UNLIMITED"), seconds(launch.time)
        most, grace = seconds(longest), int(limit.get("GraceTime", "0"))
        findings.fact(f"partition {name}: MaxTime {longest}, GraceTime {grace} s")
        if most is not None and (asked is None or asked > most):
            findings.fail(
                f"launch.time={launch.time} is longer than MaxTime={longest} of partition {name}: the job would wait "
                "forever",
                f"--time {longest}; a longer training is requeued and continues",
            )
        if limit.get("PreemptMode", "OFF") != "OFF" and grace < launch.signal_lead:
            findings.warn(
                f"a pre-emption leaves GraceTime={grace} s to save, less than launch.signal_lead={launch.signal_lead}",
                "lower loop.save_every, so that fewer steps are lost if a save takes longer",
            )
    return findings.check("the limits of the partition are unknown")


def _chain(job: Job) -> Check:
    """Compare the follow-up jobs with what SLURM does after a pre-emption."""
    findings, reason = Findings("chain"), queue.no_requeue(job.recipe.launch.partition)
    if reason:
        findings.fact(f"{reason}: SLURM does not requeue")
    if job.chain:
        findings.fact(f"{job.chain} follow-up jobs, each continues if the one before does not end the run")
    elif reason:
        findings.warn("after a pre-emption or a time limit, the run waits for its next submission", "--chain 5")
    return findings.check("no follow-up jobs: the job is requeued")


def _finished(job: Job) -> Check:
    findings = Findings("run")
    state = (read_json(RunDir(job.run).status) or {}).get("state")
    if state == "finished":
        findings.warn(f"{job.run} is finished: the job would do nothing", "another --run, or more loop.epochs")
    return findings.check(f"{job.run}")


def _mirror(job: Job, url: str) -> Check:
    """Look for checkpoints in the mirror that the run resumes from."""
    findings = Findings("mirror")
    if any(job.run.glob("checkpoints/step-*")):
        unused = f"{job.run} already has checkpoints, which the job resumes from: --resume-from is not used"
        findings.warn(unused, "omit it, or choose another --run")
        return findings.check()
    place = RemoteFolder(url, "--resume-from")
    try:
        steps = place.steps(seconds=MIRROR_SECONDS)
    except Exception as error:  # stores have different errors; the nodes may reach what this machine does not
        reason = redacted(f"{type(error).__name__}: {error}")
        findings.warn(f"{place.url} cannot be listed from here ({reason})", "check that the nodes can read it")
        return findings.check()
    if steps:
        findings.fact(f"{place.url} has {len(steps)} checkpoints, the newest of step {steps[-1]}")
    else:
        findings.warn(f"{place.url} has no complete checkpoint as seen from here", "name the folder loop.mirror/NAME")
    return findings.check()


def _options(job: Job) -> Check:
    """Refuse options of `launch.extra` that break the script."""
    findings = Findings("options")
    for option, fix in conflicts(job.recipe.launch.extra):
        findings.fail(f"launch.extra (--sbatch): {option} contradicts the rendered script", fix)
    return findings.check("launch.extra contradicts nothing")


def _lint(scripts: Sequence[str]) -> Check:
    findings = Findings("script")
    for script in scripts:
        if wrong := syntax_error(script):
            findings.fail(f"bash cannot read the script: {wrong}", "correct launch.setup (--setup) or the template")
    for problem in dict.fromkeys(problem for script in scripts for problem in lint(script)):
        findings.warn(problem, "correct launch.extra, launch.setup or the template")
    return findings.check("every #SBATCH line takes effect")


def _test_only(scripts: Sequence[str]) -> Check:
    """Ask the controller about the scripts, without submitting them."""
    if not queue.here():
        return Check("sbatch", "skipped", "not found here: no job can be submitted")
    refusal = next(filter(None, map(queue.refusal, scripts)), None)
    if refusal is None:
        return Check("sbatch", "ok", "accepted by sbatch --test-only")
    return Check("sbatch", "failed", refusal, "choose other resources: `sinfo` lists partitions, nodes and limits")
