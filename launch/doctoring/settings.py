"""Environment variables that change what a training does, often without a word, and names that have to resolve."""

from __future__ import annotations

import os
import re
import socket

import psutil

from launch.configs import LaunchPlan
from launch.doctoring.check import Check, Findings
from trainer.cpu_info import cores

TRUE = ("1", "true", "yes", "on", "y", "t")
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
TOLD = (  # named where they are set, because they explain much
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_DEBUG"),
    *("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE", "TORCH_DISTRIBUTED_DEBUG"),
)


def checks(plan: LaunchPlan | None) -> list[Check]:
    """`plan`: what is to be started here; None where its config does not run."""
    return [_environment(plan), _threads(plan), _network(plan), _hub()]


def _environment(plan: LaunchPlan | None) -> Check:
    findings = Findings("environment")
    told = [f"{name}={os.environ[name]}" for name in TOLD if name in os.environ]
    if told:
        findings.fact(", ".join(told))
    if (name := next((name for name in LAUNCHED if name in os.environ), None)) is not None:
        text = f"{name}={os.environ[name]} is set: rankzero believes that a launcher started it, and starts none"
        findings.warn(text, f"unset {' '.join(LAUNCHED)} (outside of torchrun, accelerate launch and srun)")
    _misleading(findings, plan)
    return findings.check("no variable that changes a training")


def _misleading(findings: Findings, plan: LaunchPlan | None) -> None:
    """`rankzero train` removes these; `accelerate launch`, `torchrun` and `srun` by hand obey them."""
    by_hand = "rankzero train ignores it, accelerate launch and torchrun do not"
    engine = plan.engine if plan else "ddp"
    if _on("ACCELERATE_USE_CPU"):
        if engine not in ("single", "ddp"):
            findings.warn(f"ACCELERATE_USE_CPU is set: {engine} would silently be DDP; {by_hand}", _unset("USE_CPU"))
        elif plan and not plan.cpu:
            findings.warn(f"ACCELERATE_USE_CPU is set: the GPUs would stay unused; {by_hand}", _unset("USE_CPU"))
    for kind, engines in (("DEEPSPEED", ("zero1", "zero2", "zero3")), ("FSDP", ("fsdp2",))):
        if _on(f"ACCELERATE_USE_{kind}") and engine not in engines:
            text = f"ACCELERATE_USE_{kind} is set and {engine} is wanted; {by_hand}"
            findings.warn(text, _unset(f"USE_{kind}"))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision and plan and precision != plan.precision:
        text = f"ACCELERATE_MIXED_PRECISION={precision}, and config {plan.config} says {plan.precision}; {by_hand}"
        findings.warn(text, _unset("MIXED_PRECISION"))


def _unset(name: str) -> str:
    return f"unset ACCELERATE_{name}"


def _threads(plan: LaunchPlan | None) -> Check:
    findings = Findings("threads")
    ranks = plan.ranks_here if plan else 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    each = int(told) if told.isdigit() and int(told) > 0 else max(1, cores() // ranks)
    findings.fact(f"{ranks} {'rank' if ranks == 1 else 'ranks'} x {each} threads on {cores()} cores")
    if told and not told.isdigit():
        findings.warn(f"OMP_NUM_THREADS={told!r} is no number", "unset OMP_NUM_THREADS: rankzero train chooses it")
    elif ranks * each > cores() and ranks > cores():
        text = "more ranks than cores: on a CPU each small matrix product waits for a scheduler slice"
        findings.warn(text, f"--nproc {cores()} at most, or more cores (sbatch --cpus-per-task)")
    elif ranks * each > cores():
        text = "more threads than cores: small matrix products take ten times as long"
        findings.warn(text, f"unset OMP_NUM_THREADS, or set it to {max(1, cores() // ranks)}")
    return findings.check()


def _network(plan: LaunchPlan | None) -> Check:
    """That the machine's own name and the interfaces named in the environment exist: gloo and NCCL listen there."""
    findings = Findings("network")
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        text = f"this machine's name {name} has no address"
        findings.warn(text, f"add '127.0.1.1 {name}' to /etc/hosts; on a cluster, its address in the network")
        addresses = []
    if addresses:
        findings.fact(f"{name} is {', '.join(addresses)}")
    many = plan is not None and plan.machines > 1
    if many and addresses and all(address.startswith("127.") or address == "::1" for address in addresses):
        text = "other machines would be told an address that leads back to themselves"
        findings.fail(text, f"give {name} its address in /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME")
    here = sorted(psutil.net_if_addrs())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        missing = _missing_interfaces(os.environ.get(variable, ""), here, exact=variable.startswith("GLOO"))
        if missing:
            findings.fail(f"{variable} names {', '.join(missing)}", f"set {variable} to one of {', '.join(here)}")
    return findings.check()


def _missing_interfaces(value: str, here: list[str], *, exact: bool) -> list[str]:
    """gloo takes whole names; NCCL prefixes, whole names after "=", and what not to take after "^"."""
    if value.startswith("^"):
        return []
    exact = exact or value.startswith("=")
    names = [name for name in re.split(r"\s*,\s*", value.lstrip("=").strip()) if name]
    return [name for name in names if not any(one == name or (not exact and one.startswith(name)) for one in here)]


def _hub() -> Check:
    """Never prints a token, nor says where it is."""
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE") if _on(name)]
    if offline:
        text = f"off by {', '.join(offline)}: recipes that name a Hub model or data set use what is in the cache"
    else:
        text = "allowed (HF_HUB_OFFLINE=1 keeps off it); only recipes that name a Hub model or data set use it"
    if os.environ.get("HF_ENDPOINT"):
        text += "; HF_ENDPOINT points elsewhere"
    return Check("hub", "ok", text + ("; a token is set" if os.environ.get("HF_TOKEN") else ""))


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE
