"""SLURM: its commands, whether its controller answers, and the job that this process may be in."""

from __future__ import annotations

import os
import shutil

from launch.doctoring.check import Check, Findings, ask

COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo")
PATIENCE = 10.0


def checks() -> list[Check]:
    """One check, "slurm"; skipped where there is none, for nothing but `rankzero submit` needs it."""
    found = [command for command in COMMANDS if shutil.which(command)]
    if not found:
        return [Check("slurm", "skipped", "not found: rankzero submit cannot be used here")]
    findings = Findings("slurm")
    missing = [command for command in COMMANDS if command not in found]
    if missing:
        fix = "install the client package (Debian: apt-get install slurm-client), or load the site's module"
        findings.warn(f"{', '.join(missing)} not in PATH", fix)
    if "sinfo" in found:
        _ask_controller(findings)
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
        findings.fact(f"inside job {job} on {nodes} {'node' if nodes == '1' else 'nodes'}")
    else:
        findings.fact("not inside a job")
    return [findings.check()]


def _ask_controller(findings: Findings) -> None:
    version = ask(["sinfo", "--version"], PATIENCE)
    findings.fact(version.text if version.code == 0 else "version unknown")
    answer = ask(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%t"], PATIENCE)
    if answer.code != 0:
        fix = "scontrol ping; is slurmctld running, is munge, and is slurm.conf the controller's?"
        findings.warn(f"the controller does not answer: {answer.last}", fix)
        return
    lines = [line.split("|") for line in answer.text.splitlines() if line.count("|") == 4]
    if not lines:
        findings.warn("no partition", "ask the cluster's administrator for one that you may use")
        return
    told = [f"{name} {up}, {nodes} {state}, {limit}" for name, up, limit, nodes, state in lines]
    findings.fact(f"partitions: {' / '.join(told)}")
    if not any(up == "up" and _usable(state) for _, up, _, _, state in lines):
        findings.warn("no node can take a job", "sinfo -R tells why the nodes are down or drained")


def _usable(state: str) -> bool:
    """Whether nodes in this state take jobs, now or later (sinfo marks those that do not answer with a star)."""
    return state.rstrip("~#$@+^-") in ("idle", "mix", "alloc", "comp", "resv")
