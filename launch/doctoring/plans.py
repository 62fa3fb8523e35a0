"""Which configs run on this machine, which one is looked at, and whether the port that it names is free."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import yaml

from launch.configs import LaunchPlan, choose, describe, find, gpus, shipped
from launch.doctoring.check import Check, Findings
from launch.doctoring.versions import installed
from trainer.errors import UsageError

ACCELERATE_PORT = 29500  # what accelerate takes where a file names none
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def chosen(config: str | None, nproc: int | None) -> tuple[LaunchPlan | None, Check]:
    """The plan to look at: as `rankzero train` chooses, but two CPU ranks where that would be one process.

    Raises:
        UsageError: there is no such config, or `nproc` does not fit a config that runs here otherwise.
    """
    alone = config is None and gpus() < 2
    name = "cpu" if alone else config or "ddp"
    find(name)
    try:
        plan = choose(name, None)
    except UsageError as error:
        return None, Check("config", "failed", str(error), "rankzero doctor --config NAME with one that runs here")
    if nproc is not None:
        plan = choose(name, nproc)
    missing = _missing_for(plan)
    if missing:
        return None, Check("config", "failed", f"{name}: {missing}", "pip install 'rankzero[deepspeed]'")
    ranks = f"{plan.ranks} {'rank' if plan.ranks == 1 else 'ranks'}"
    found = f"{name}: engine {plan.engine}, {ranks}, {plan.precision if plan.precision != 'no' else 'fp32'}"
    if alone:
        found += "; rankzero train takes debug here (one process) unless --config says otherwise"
    return plan, Check("config", "ok", found)


def checks(plan: LaunchPlan | None) -> list[Check]:
    """The shipped configs, accelerate's own default file, and the port of the plan."""
    found = [_shipped(), _default_file()]
    return [*found, _port(plan)] if plan else found


def _shipped() -> Check:
    runs: list[str] = []
    reasons: dict[str, list[str]] = {}
    for name in shipped():
        reason = why_not(name)
        if reason:
            reasons.setdefault(reason, []).append(name)
        else:
            runs.append(name)
    found = f"run here: {', '.join(runs) or 'none'}"
    for reason, names in reasons.items():
        found += f"; not {', '.join(names)}: {reason}"
    fix = "reinstall rankzero: debug runs everywhere"
    return Check("shipped configs", "ok", found) if runs else Check("shipped configs", "failed", found, fix)


def why_not(name: str) -> str:
    """Why a shipped config does not run on this machine; empty if it does."""
    plan = describe(name)
    missing = _missing_for(plan)
    if plan.machines > 1:
        needs = "" if plan.cpu else "GPUs and "
        return f"for {plan.machines} machines, needs {needs}the address of the first in a copy of the file"
    if not plan.cpu and plan.engine != "single":
        if gpus() == 0:
            return "no GPU"
        if gpus() == 1 and plan.engine == "ddp":
            return "one GPU: DDP would be one process, take debug"
    return missing


def _missing_for(plan: LaunchPlan) -> str:
    if plan.engine.startswith("zero") and installed("deepspeed") is None:
        return "DeepSpeed is not installed"
    return ""


def _default_file() -> Check:
    """`accelerate launch` without --config_file reads this one; several wrong ones train alone without a word."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface"
    for path in (Path(home).expanduser() / "accelerate" / f"default_config.{kind}" for kind in ("yaml", "json")):
        if not path.is_file():
            continue
        try:
            plan = describe(path)
        except UsageError as error:
            fix = f"accelerate launch --config_file accelerate_configs/NAME.yaml, or correct {path}"
            return Check("accelerate's default", "warning", f"would not run as written: {error}", fix)
        return Check("accelerate's default", "ok", f"{path}: engine {plan.engine}")
    return Check("accelerate's default", "ok", "no file: accelerate launch needs --config_file")


def _port(plan: LaunchPlan) -> Check:
    findings = Findings("port")
    if plan.engine == "single":
        return Check("port", "skipped", "one process needs none")
    values: dict[str, Any] = yaml.safe_load(plan.path.read_text(encoding="utf-8"))
    port = values.get("main_process_port")
    port = ACCELERATE_PORT if port is None else port
    if values.get("machine_rank", 0) != 0:
        return Check("port", "skipped", f"{port} is for the first machine to open")
    if not isinstance(port, int) or not 0 <= port < 65536:
        fix = f"main_process_port in {plan.path}: 0 (any free one) to 65535"
        return Check("port", "failed", f"main_process_port is {port!r}", fix)
    free = f"choose another main_process_port in {plan.path}"
    if plan.machines == 1:
        free += ", or 0 for any free one"
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the ranks' store does
            trial.bind(("", port))
            trial.listen()
            findings.fact(f"{port} is free" if port else f"any free one, such as {trial.getsockname()[1]}")
    except OSError as error:
        taken = (
            "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
        )
        findings.fail(f"{port} {taken}", f"ss -ltnp 'sport = :{port}' says by which; {free}")
    if port and _ephemeral(port):
        findings.warn(f"{port} lies in the range that the system hands out, so it may be taken at any time", free)
    return findings.check()


def _ephemeral(port: int) -> bool:
    try:
        low, high = (int(word) for word in EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return False
    return low <= port <= high
