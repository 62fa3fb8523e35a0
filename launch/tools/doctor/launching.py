"""Check what starting ranks depends on: configs, port, environment variables, network and SLURM."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import psutil
import yaml
from huggingface_hub import constants

from launch.configs import LaunchPlan, choose, describe, find, gpus, shipped
from launch.findings import Check, Findings
from launch.local import MISLEADING, environment, settings
from launch.slurm import queue
from trainer.cpu_info import cores
from trainer.engine_specs import ENGINES
from trainer.errors import UsageError
from trainer.rank_env import UNSET, check_environment

ACCELERATE_PORT = 29500  # of Accelerate, where a file names none
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRUE = ("1", "true", "yes", "on", "y", "t")
SHOWN = (  # where they are set, because they explain much
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_DEBUG"),
    *("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE", "TORCH_DISTRIBUTED_DEBUG"),
)
SLURM_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo")
SLURM_SECONDS = 10.0  # for the controller to answer
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
    if missing := ENGINES[plan.engine].missing_package:
        findings.fail(f"{name}: {missing} is not installed", f"pip install 'rankzero[{missing}]'")
        return None, findings.check()
    findings.fact(f"{name}: engine {plan.engine}, {plan.ranks} ranks, {plan.precision.replace('no', 'fp32')}")
    if alone:
        findings.fact("rankzero train uses config debug here (one process) unless --config names another")
    return plan, findings.check()


def check_shipped(findings: Findings) -> None:
    """List the shipped configs that run here, and why others do not."""
    names: dict[str, list[str]] = {}
    for name in shipped():
        names.setdefault(why_not(name), []).append(name)
    for reason in sorted(names):
        findings.fact(f"not {', '.join(names[reason])}: {reason}" if reason else f"run here: {', '.join(names[''])}")


def why_not(name: str) -> str:
    """Return why a shipped config does not run on this machine, or "" if it does."""
    plan = describe(name)
    facts = ENGINES[plan.engine]
    if plan.machines > 1:
        return f"for {plan.machines} machines, needs the address of the first one in a copy of the file"
    if not plan.cpu and not facts.one_process:
        if gpus() == 0:
            return "no GPU"
        if choose(name, None).engine != plan.engine:
            return "with one GPU it is one process: use debug"
    return f"{facts.missing_package} is not installed" if facts.missing_package else ""


def check_default_file(findings: Findings) -> None:
    """Check the file that `accelerate launch` reads without --config_file. A wrong one trains in one process."""
    for kind in ("yaml", "json"):
        path = Path(constants.HF_HOME) / "accelerate" / f"default_config.{kind}"
        if path.is_file():
            try:
                findings.fact(f"{path}: engine {describe(path).engine}")
            except UsageError as error:
                fix = f"accelerate launch --config_file accelerate_configs/NAME.yaml, or correct {path}"
                findings.warn(f"would not run as written: {error}", fix)
            return
    findings.fact("no file: accelerate launch needs --config_file")


def check_port(findings: Findings, plan: LaunchPlan | None) -> None:
    """Check that the port of the config can be opened, and that the system does not give it to other programs."""
    if plan is None or ENGINES[plan.engine].one_process:
        findings.skip("the config does not run here" if plan is None else "one process needs none")
        return
    values = yaml.safe_load(plan.path.read_text(encoding="utf-8"))
    if values.get("machine_rank", 0) != 0:
        findings.skip("it is opened on the first machine")
        return
    port = ACCELERATE_PORT if values.get("main_process_port") is None else values["main_process_port"]
    fix = f"set another main_process_port in {plan.path}" + (" (0: any free one)" if plan.machines == 1 else "")
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store of the ranks does
            trial.bind(("", port))
            trial.listen()
            findings.fact(f"{port} is free" if port else f"any free one, such as {trial.getsockname()[1]}")
    except (OSError, OverflowError, TypeError) as error:
        findings.fail(f"main_process_port {port!r} cannot be opened: {error}", f"ss -ltnp 'sport = :{port}'; {fix}")
        return
    low, high = (int(word) for word in EPHEMERAL.read_text().split()) if EPHEMERAL.is_file() else (0, 0)
    if port and low <= port <= high:
        findings.warn(f"{port} is in the range that the system gives to any program (ip_local_port_range)", fix)


def check_variables(findings: Findings, plan: LaunchPlan | None) -> None:
    """Find variables of another launcher, and those that would change the engine, device or precision."""
    if shown := [f"{name}={os.environ[name]}" for name in SHOWN if name in os.environ]:
        findings.fact(", ".join(shown))
    try:
        check_environment()
        if world := os.environ.get("WORLD_SIZE"):
            findings.warn(f"WORLD_SIZE={world}: a launcher seems to run, so rankzero starts no ranks", UNSET)
    except UsageError as error:
        findings.warn(str(error), UNSET)
    if plan is None:
        return
    ignored = "rankzero train ignores it, accelerate launch and torchrun do not"
    for name in MISLEADING:
        if _is_on(name) and name not in settings(plan) and name != ENGINES[plan.engine].switch:
            text = f"{name} is set: instead of config {plan.config} ({plan.engine}) something else would run silently"
            findings.warn(f"{text}; {ignored}", f"unset {name}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", plan.precision)
    if precision != plan.precision:
        text = f"ACCELERATE_MIXED_PRECISION={precision}, but config {plan.config} has {plan.precision}; {ignored}"
        findings.warn(text, "unset ACCELERATE_MIXED_PRECISION")


def check_threads(findings: Findings, plan: LaunchPlan | None) -> None:
    """Compare ranks x threads with the usable cores."""
    if plan is None:
        findings.skip("the config does not run here")
        return
    ranks, usable, threads = plan.ranks_here, cores(), environment(plan)["OMP_NUM_THREADS"]
    findings.fact(f"{ranks} ranks x {threads} threads on {usable} cores")
    if not threads.isdigit():
        findings.warn("OMP_NUM_THREADS is not a number", "unset OMP_NUM_THREADS: rankzero train chooses it")
    elif ranks > usable:
        fix = f"--nproc {usable} at most, or more cores (sbatch --cpus-per-task)"
        findings.warn("more ranks than cores: on a CPU, small matrix products wait for the scheduler", fix)
    elif ranks * int(threads) > usable:
        fix = f"unset OMP_NUM_THREADS, or set it to {usable // ranks}"
        findings.warn("more threads than cores: small matrix products take ten times as long", fix)


def check_network(findings: Findings, plan: LaunchPlan | None) -> None:
    """Check that the machine's name has an address, and that the interfaces chosen for gloo and NCCL exist."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
        findings.fact(f"{name} is {', '.join(addresses)}")
        loopback = all(address.startswith("127.") or address == "::1" for address in addresses)
        if loopback and plan and plan.machines > 1:
            fix = f"give {name} its address in /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            findings.fail("other machines would get an address that leads back to themselves", fix)
    except OSError:
        fix = f"add '127.0.1.1 {name}' to /etc/hosts, or on a cluster the machine's address in the network"
        findings.warn(f"this machine's name {name} has no address", fix)
    interfaces = sorted(psutil.net_if_addrs())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if missing := _missing_interfaces(os.environ.get(variable, ""), interfaces, variable.startswith("GLOO")):
            fix = f"set {variable} to one of {', '.join(interfaces)}"
            findings.fail(f"{variable} names {', '.join(missing)}, which does not exist", fix)


def _missing_interfaces(value: str, interfaces: list[str], full_names: bool) -> list[str]:
    """Return the names without an interface. NCCL takes prefixes, full names after "=", and "^" for exclusion."""
    if value.startswith("^"):
        return []
    exact = full_names or value.startswith("=")
    names = filter(None, re.split(r"[\s,]+", value.removeprefix("=")))
    return [name for name in names if not any(i == name if exact else i.startswith(name) for i in interfaces)]


def check_hub(findings: Findings) -> None:
    """Report whether the Hugging Face Hub may be used. Never print a token."""
    if offline := [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE") if _is_on(name)]:
        findings.fact(f"offline by {', '.join(offline)}: only models and data sets in the cache can be used")
    else:
        findings.fact("online for recipes that name a Hub model or data set (HF_HUB_OFFLINE=1 forbids it)")
    for name, text in (("HF_ENDPOINT", "HF_ENDPOINT names another server"), ("HF_TOKEN", "a token is set")):
        if os.environ.get(name):
            findings.fact(text)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE


def check_slurm(findings: Findings) -> None:
    """Check SLURM's commands, its controller, and the job that this process is in."""
    missing = [command for command in SLURM_COMMANDS if shutil.which(command) is None]
    if len(missing) == len(SLURM_COMMANDS):
        findings.skip("not found: rankzero submit cannot be used here")
        return
    job = os.environ.get("SLURM_JOB_ID")
    findings.fact(f"inside job {job}" if job else "not inside a job")
    if missing:
        fix = "install the client package (Debian: apt-get install slurm-client), or load the site's module"
        findings.warn(f"{', '.join(missing)} not in PATH", fix)
    if "sinfo" in missing:
        return
    try:
        done = queue.call(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%t"], seconds=SLURM_SECONDS)
        error = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
    except UsageError as timeout:
        error = str(timeout)
    if error:
        fix = "scontrol ping; check that slurmctld and munge run and that slurm.conf is that of the controller"
        findings.warn(f"the controller does not answer: {error}", fix)
        return
    partitions = [line.split("|") for line in done.stdout.splitlines()]
    for name, up, limit, nodes, state in partitions:
        findings.fact(f"partition {name} {up}, {nodes} {state}, {limit}")
    if not any(up == "up" and state.rstrip("~#$@+^-") in USABLE for _, up, _, _, state in partitions):
        findings.warn("no node can take a job", "sinfo -R gives the reasons; ask the administrator for a partition")
