"""Start ranks as a training does, and check that they connect, sum correctly and wait for each other."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from launch.configs import LaunchPlan
from launch.findings import Findings, size
from launch.local import command, environment, with_module_path
from launch.supervise.processes import started
from trainer.engine_specs import ENGINES
from trainer.files import read_json
from trainer.rank_env import RANK_VARIABLES
from trainer.redaction import redacted

NO_PROGRESS_SHARE = 4  # a rank without progress for this part of the time limit is named and ended
LAST_MESSAGES = 5.0  # seconds for the other ranks to name the one without progress
NO_PROGRESS = "no progress"  # printed by a rank, see collectives.py
SLOW = 0.1  # GB/s of bus bandwidth at the largest size: a network of 1 Gbit/s is as fast
SLOW_NCCL = 1.0  # GB/s within one machine
FIXES = {  # by a part of the message
    "is stopped": "find out what stopped it: a debugger, kill -STOP, or a batch system that suspends jobs",
    "SIGKILL": "dmesg | grep -i 'out of memory'; more memory (sbatch --mem), or fewer ranks (--nproc)",
    "UsageError": "correct what the message names, in the environment or in the config",
    "": "slow disk or busy machine: larger --timeout. GPUs: NCCL_DEBUG=INFO, dmesg | grep -i xid, NCCL_P2P_DISABLE=1. "
    "Several machines: the same command on each within the time limit, each with its machine_rank; open "
    "main_process_port, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
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
    elif ENGINES[plan.engine].one_process:
        findings.skip(f"config {plan.config} is one process here; for several, use --config cpu or ddp")
    else:
        with tempfile.TemporaryDirectory(prefix="rankzero-doctor-", ignore_cleanup_errors=True) as folder:
            code = _run(plan, Path(folder), timeout)
            log, measured = (Path(folder) / "log").read_text(errors="replace"), read_json(Path(folder) / "result.json")
        if code != 0 or not measured:
            report_failure(findings, log, "not finished, ended by doctor" if code is None else f"exit code {code}")
            return
        result.update(measured)
        hosts = ", ".join(f"{count} on {host}" for host, count in Counter(result["hosts"]).items())
        findings.fact(f"{plan.ranks} ranks ({hosts}), engine {result['engine']}, {result['backend']}")
        findings.fact(f"connected within {result['connect_seconds']:.2f} s")


def _run(plan: LaunchPlan, folder: Path, timeout: float) -> int | None:
    """Return the exit code of the launcher, or None if it had to be ended."""
    limit = timeout / NO_PROGRESS_SHARE
    words = command(plan, [str(folder), str(timeout - limit), str(limit)], module="launch.tools.doctor.collectives")
    env = {key: value for key, value in environment(plan).items() if key not in RANK_VARIABLES}
    end = time.monotonic() + timeout
    with (folder / "log").open("wb") as log, started(words, with_module_path(env), log) as process:
        while process.poll() is None and time.monotonic() < end:
            if NO_PROGRESS in (folder / "log").read_text(errors="replace"):
                end = min(end, time.monotonic() + LAST_MESSAGES)
            time.sleep(0.1)
        return process.returncode


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
    wrong = [size(row["bytes"]) for row in rows if not row["correct"]]
    if wrong:
        fix = "faulty memory, GPU or link: dmesg, nvidia-smi -q -d ECC; try NCCL_P2P_DISABLE=1, and each GPU alone"
        findings.fail(f"the sum is wrong at {', '.join(wrong)}", fix)
    if not result["same_bits"]:
        text = "ranks hold different bits of the same sum: their weights would become different"
        findings.fail(text, "install the same torch and NCCL on all machines; NCCL_ALGO=Ring")
    elif not wrong:
        findings.fact("sums correct, the same bits on all ranks")
    if result["backend"] == "nccl" and len(set(result["hosts"])) == 1 and bandwidth < SLOW_NCCL:
        fix = "nvidia-smi topo -m; unset NCCL_P2P_DISABLE and NCCL_SHM_DISABLE; NCCL_DEBUG=INFO shows the transport"
        findings.warn("slow for GPUs of one machine", fix)
    elif bandwidth < SLOW:
        fix = "end other programs; on a cluster, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the fast interface"
        findings.warn("slow: ranks would wait for each other at every step", fix)


def check_barrier(findings: Findings, result: dict[str, Any]) -> None:
    if not result:
        findings.skip("no ranks were measured")
    else:
        findings.fact(f"all ranks came within {result['barrier_seconds'] * 1e3:.1f} ms")
