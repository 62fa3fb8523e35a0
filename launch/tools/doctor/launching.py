"""Check what starting ranks depends on: config, environment variables, the machine's address and SLURM."""

from __future__ import annotations

import os
import socket

from launch.configs import PARALLELISM, LaunchPlan, choose, find, gpus
from launch.findings import Check, Findings
from launch.local import MISLEADING, settings
from launch.slurm import queue
from trainer.errors import UsageError

TRUE = ("1", "true", "yes", "on", "y", "t")
PRECISION = "ACCELERATE_MIXED_PRECISION"
SHOWN = (  # where they are set, because they explain much
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_DEBUG"),
    *("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE", "HF_HUB_OFFLINE", "SLURM_JOB_ID"),
)
USABLE = ("idle", "mix", "alloc", "comp", "resv")  # states of SLURM nodes that take jobs now or later


def choose_plan(config: str | None, nproc: int | None) -> tuple[LaunchPlan | None, Check]:
    """Choose as `rankzero train` does, but two CPU ranks where that would be one process.

    Returns:
        The plan, None if it does not run here, and the result of the check "config".

    Raises:
        UsageError: there is no such config, or `nproc` does not fit it.
    """
    findings = Findings("config")
    alone = config is None and gpus() < 2
    name = "cpu" if alone else config or "ddp"
    find(name)
    try:
        plan = choose(name, None)
    except UsageError as error:
        findings.fail(str(error), "rankzero doctor --config NAME with a config that runs here")
        return None, findings.check()
    plan = plan if nproc is None else choose(name, nproc)
    if missing := plan.spec.missing_package:
        findings.fail(f"{name}: {missing} is not installed", f"pip install 'rankzero[{missing}]'")
        return None, findings.check()
    copies = f" ({plan.copies} copies of the model, each in {plan.parts} parts)" if plan.copies > 1 else ""
    findings.fact(f"{name}: engine {plan.engine}, {plan.ranks} ranks{copies}, {plan.precision.replace('no', 'fp32')}")
    if plan.copies > 1 and plan.ranks_here % plan.parts:
        text = f"the {plan.parts} parts of a copy are on several machines, which have {plan.ranks_here} ranks each"
        findings.warn(text, f"set {PARALLELISM}_dp_shard_size to a number that divides {plan.ranks_here}")
    if plan.note:
        findings.fact(plan.note)
    if alone:
        findings.fact("rankzero train uses config debug here (one process) unless --config names another")
    return plan, findings.check()


def check_environment(findings: Findings, plan: LaunchPlan | None) -> None:
    """Find variables that would silently change the engine, device or precision of `accelerate launch`."""
    if shown := [f"{name}={os.environ[name]}" for name in SHOWN if name in os.environ]:
        findings.fact(", ".join(shown))
    if plan is None:
        return
    wanted = {*settings(plan), plan.spec.switch}
    wrong = [name for name in MISLEADING if os.environ.get(name, "").lower() in TRUE and name not in wanted]
    wrong += [PRECISION] if os.environ.get(PRECISION, plan.precision) != plan.precision else []
    for name in wrong:
        text = f"with {name}={os.environ[name]}, accelerate launch and torchrun would silently run something else"
        findings.warn(f"{text} than config {plan.config} ({plan.engine}); rankzero train ignores it", f"unset {name}")


def check_network(findings: Findings, plan: LaunchPlan | None) -> None:
    """Check that other machines can reach this one by the address of its name, which gloo and NCCL use."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        addresses = []
    findings.fact(f"{name} is {', '.join(addresses) or 'a name without an address'}")
    own = all(address.startswith("127.") or address == "::1" for address in addresses)
    if own and plan and plan.machines > 1:
        fix = f"give {name} its address in /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        findings.fail("other machines would get an address that leads back to themselves, or none", fix)


def check_slurm(findings: Findings) -> None:
    """Check that SLURM's controller answers and that a node takes jobs."""
    if not queue.here():
        findings.skip("not found: rankzero submit cannot be used here")
        return
    try:
        partitions = queue.node_states()
    except UsageError as error:
        fix = "scontrol ping; check that slurmctld and munge run and that slurm.conf is that of the controller"
        findings.warn(str(error), fix)
        return
    for name, up, limit, nodes, state in partitions:
        findings.fact(f"partition {name} {up}, {nodes} {state}, {limit}")
    if not any(up == "up" and state.rstrip("~#$@+^-") in USABLE for _, up, _, _, state in partitions):
        findings.warn("no node can take a job", "sinfo -R gives the reasons; ask the administrator for a partition")
