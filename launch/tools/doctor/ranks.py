"""Start ranks as a training does, and check that they connect and sum correctly."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from launch.configs import LaunchPlan
from launch.findings import Findings, size
from launch.local import command, environment, with_module_path
from launch.supervise.processes import started
from trainer.files import read_json
from trainer.rank_env import RANK_VARIABLES
from trainer.redaction import redacted

NO_PROGRESS_SHARE = 4  # a rank without progress for this part of the time limit is named and ended
NO_PROGRESS = "no progress"  # printed by a rank, see collectives.py
SLOW = 0.1  # GB/s of bus bandwidth at the largest size: a network of 1 Gbit/s is as fast
SLOW_NCCL = 1.0  # GB/s within one machine
HANGS = (
    "slow disk or busy machine: larger --timeout. GPUs: NCCL_DEBUG=INFO, dmesg | grep -i xid, NCCL_P2P_DISABLE=1. "
    "Several machines: the same command on each within the time limit, each with its machine_rank; open "
    "main_process_port, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
)
FIXES = {  # by a part of the message
    "is stopped": "find out what stopped it: a debugger, kill -STOP, or a batch system that suspends jobs",
    NO_PROGRESS: HANGS,
    "SIGKILL": "dmesg | grep -i 'out of memory'; more memory (sbatch --mem), or fewer ranks (--nproc)",
    "UsageError": "correct what the message names, in the environment or in the config",
    "": HANGS,
}


def check_ranks(
    findings: Findings, plan: LaunchPlan | None, timeout: float, quick: bool, result: dict[str, Any]
) -> None:
    """Start the ranks of `plan` and wait at most `timeout` seconds for them. Afterwards none of them runs.

    Args:
        result: gets what the ranks measured (see collectives.py), if all of them finished.
    """
    if quick:
        findings.skip("left out by --quick")
    elif plan is None:
        findings.skip("the config does not run here")
    elif "WORLD_SIZE" in os.environ:
        findings.skip("a launcher has started this process: WORLD_SIZE is set")
    elif plan.spec.one_process:
        findings.skip(f"config {plan.config} is one process here; for several, use --config cpu or ddp")
    else:
        with tempfile.TemporaryDirectory(prefix="rankzero-doctor-", ignore_cleanup_errors=True) as folder:
            ending = _run(plan, Path(folder), timeout)
            log, measured = (Path(folder) / "log").read_text(errors="replace"), read_json(Path(folder) / "result.json")
        if ending or not measured:
            report_failure(findings, log, ending)
            return
        result.update(measured)
        hosts = ", ".join(dict.fromkeys(result["hosts"]))
        findings.fact(f"{plan.ranks} ranks on {hosts}, engine {result['engine']}, {result['backend']}")
        findings.fact(f"connected within {result['connect_seconds']:.2f} s")


def _run(plan: LaunchPlan, folder: Path, timeout: float) -> str:
    """Return how the launcher failed, or an empty text."""
    limit = timeout / NO_PROGRESS_SHARE
    words = command(plan, [str(folder), str(timeout - limit), str(limit)], module="launch.tools.doctor.collectives")
    env = {key: value for key, value in environment(plan).items() if key not in RANK_VARIABLES}
    with (folder / "log").open("wb") as log, started(words, with_module_path(env), log) as process:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "not finished, ended by doctor"
    return f"exit code {code}" if code else ""


def report_failure(findings: Findings, log: str, ending: str) -> None:
    """Report which ranks failed, by the messages of the ranks and of the launcher."""
    lines = log.strip().splitlines()
    messages = [line.removeprefix("rankzero: ").split("; its stack")[0] for line in lines if line[:9] == "rankzero:"]
    failed = redacted("; ".join([*dict.fromkeys(messages or lines[-1:] or ["no rank printed a message"]), ending]))
    findings.fail(failed, next(fix for part, fix in FIXES.items() if part in failed))


def check_all_reduce(findings: Findings, result: dict[str, Any]) -> None:
    """Check the speed and the sums of an all-reduce."""
    if not result:
        findings.skip("no ranks were measured")
        return
    rows = result["bandwidth"]
    largest, bandwidth = rows[-1], rows[-1]["bus_gb_per_s"]
    findings.fact(f"latency {result['latency_seconds'] * 1e6:.0f} µs")
    findings.fact(f"{size(largest['bytes'])} at {bandwidth:.2f} GB/s (bus) in {largest['seconds']:.3g} s")
    for group in result["groups"]:
        findings.fact(f"{group['name']} ({group['ranks']}): {group['bus_gb_per_s']:.2f} GB/s (bus)")
    wrong = [size(row["bytes"]) for row in rows if not row["correct"]]
    if wrong:
        fix = "faulty memory, GPU or link: dmesg, nvidia-smi -q -d ECC; try NCCL_P2P_DISABLE=1, and each GPU alone"
        findings.fail(f"the sum is wrong at {', '.join(wrong)}", fix)
    if not result["same_bits"]:
        text = "ranks hold different bits of the same sum: their weights would become different"
        findings.fail(text, "install the same torch and NCCL on all machines; NCCL_ALGO=Ring")
    elif not wrong:
        findings.fact("sums correct, the same bits on all ranks")
    one_machine = len(set(result["hosts"])) == 1
    if bandwidth < (SLOW_NCCL if result["backend"] == "nccl" and one_machine else SLOW):
        fix = (
            "GPUs of one machine: nvidia-smi topo -m; unset NCCL_P2P_DISABLE and NCCL_SHM_DISABLE; NCCL_DEBUG=INFO. "
            "CPUs: end other programs. Cluster: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the fast interface"
        )
        findings.warn("slow: ranks would wait for each other at every step", fix)
