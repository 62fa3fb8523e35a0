"""What the ranks are to each other: do they connect, is their sum right, how fast is it, and who did not come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from launch.configs import LaunchPlan
from launch.doctoring.check import Check, Findings, size, without_secrets
from launch.doctoring.family import DEAD, Outcome, run

SLOW = 0.1  # GB/s of bus bandwidth, by the largest size: below it, a network of 1 Gbit/s is no worse
SLOW_NCCL = 1.0  # GB/s within one machine
NAMES = ("ranks", "all-reduce", "barrier")
Rows = list[dict[str, Any]]


def skipped(why: str) -> list[Check]:
    return [Check(name, "skipped", why) for name in NAMES]


def checks(plan: LaunchPlan, timeout: float, patience: float) -> tuple[list[Check], Rows]:
    """Starts the ranks and judges what came of it; and the table of bandwidths by size, empty where it did not end."""
    if plan.engine == "single":
        return skipped(f"config {plan.config} is one process here; for several, --config cpu or ddp"), []
    return judge(plan, run(plan, timeout, patience), patience)


def judge(plan: LaunchPlan, outcome: Outcome, patience: float) -> tuple[list[Check], Rows]:
    """The checks "ranks", "all-reduce" and "barrier" from how the ranks ended."""
    results = outcome.diaries.all("result")
    if outcome.code != 0 or not results:
        return _broken(plan, outcome, patience), []
    result = results[min(results)]
    places = Counter(host for host, _ in result["places"])
    where = ", ".join(f"{count} on {host}" for host, count in places.items()) or f"{plan.ranks_here} on this machine"
    text = f"{result['ranks']} ranks ({where}), engine {result['engine']}, {result['backend']}"
    ranks = Check("ranks", "ok", f"{text}, connected within {result['connect_seconds']:.2f} s")
    text = f"all came, {result['barrier_seconds'] * 1e3:.1f} ms; one that does not would be named"
    return [ranks, _all_reduce(plan, result), Check("barrier", "ok", text)], result["bandwidth"]


def _all_reduce(plan: LaunchPlan, result: dict[str, Any]) -> Check:
    findings, rows, backend = Findings("all-reduce"), result["bandwidth"], result["backend"]
    largest = rows[-1]
    findings.fact(f"latency {result['latency_seconds'] * 1e6:.0f} µs")
    findings.fact(f"{size(largest['bytes'])} at {largest['bus_gb_per_s']:.2f} GB/s (bus) in {largest['seconds']:.3g} s")
    wrong = [size(row["bytes"]) for row in rows if not row["correct"]]
    if wrong:
        fix = "faulty memory, GPU or link: dmesg, nvidia-smi -q -d ECC; try NCCL_P2P_DISABLE=1, and each GPU alone"
        findings.fail(f"the sum is wrong at {', '.join(wrong)}", fix)
    if not result["bits_equal"]:
        text = "ranks hold different bits of the same sum: their weights would drift apart"
        findings.fail(text, "the same torch and NCCL on all machines; NCCL_ALGO=Ring")
    if not wrong and result["bits_equal"]:
        findings.fact("sums right, the same bits on all ranks")
    if backend == "nccl" and plan.machines == 1 and largest["bus_gb_per_s"] < SLOW_NCCL:
        fix = "nvidia-smi topo -m; unset NCCL_P2P_DISABLE and NCCL_SHM_DISABLE; NCCL_DEBUG=INFO tells the way it takes"
        findings.warn("slow for GPUs of one machine", fix)
    elif largest["bus_gb_per_s"] < SLOW:
        fix = "other programs on these cores or this network? On a cluster, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        findings.warn("slow: ranks would wait for each other at every step", f"{fix} name the fast interface")
    return findings.check()


def _broken(plan: LaunchPlan, outcome: Outcome, patience: float) -> list[Check]:
    """Names the ranks that did not come, or died."""
    diaries = outcome.diaries
    dead = [rank for rank, state in outcome.states.items() if state == DEAD and outcome.code is None]
    name = "barrier" if diaries.connected(plan.ranks_here) and not dead else "ranks"
    if _known_dead(outcome) or (outcome.code is not None and not diaries.missing):
        found, name = _died(outcome), "ranks"
    elif diaries.missing:
        place = str(next(iter(diaries.all("stage_missed").values())))
        found = f"{_who(outcome, diaries.missing)} did not come within {patience:g} s to the barrier before {place}"
    else:
        found = _hangs(plan, outcome)
    fix = _fix(plan, outcome, found)
    broken = Check(name, "failed", found, fix)
    return [broken if check.name == name else check for check in skipped("the ranks did not get so far")]


def _who(outcome: Outcome, ranks: Sequence[int]) -> str:
    """The ranks with their process, what it looked like, and the last thing that they were about to do."""
    told = []
    for rank in ranks:
        if rank not in outcome.diaries.entries:
            told.append(f"rank {rank} (not of this machine, or never started)")
            continue
        state = outcome.states.get(rank, "running")
        told.append(f"rank {rank} (process {outcome.diaries.pid(rank)}, {state}, in {outcome.diaries.stage(rank)!r})")
    return ", ".join(told)


def _known_dead(outcome: Outcome) -> list[int]:
    """Ranks of which the launcher said that they died (`launch.shim`)."""
    return [int(rank) for rank in re.findall(r"^rankzero: rank (\d+) ", outcome.log, re.MULTILINE)]


def _errors(outcome: Outcome) -> list[str]:
    return [f"rank {rank}: {error}" for rank, error in outcome.diaries.all("error").items()]


def _died(outcome: Outcome) -> str:
    """What the launcher said of the rank that died, and what the ranks themselves said."""
    verdict = re.findall(r"^rankzero: (.+)$", outcome.log, re.MULTILINE)
    lines = outcome.log.strip().splitlines()
    found = verdict[-1:] + _errors(outcome) or lines[-1:] or [f"the launcher ended with {outcome.code}, without a word"]
    return without_secrets("; ".join(found))


def _hangs(plan: LaunchPlan, outcome: Outcome) -> str:
    """Who holds up the others, from their processes' states, else from how far each came."""
    diaries = outcome.diaries
    if not diaries.entries:
        others = ", or the other machines have not started theirs" if plan.machines > 1 else ""
        return f"no rank was started, {outcome.late}: the launcher is slow{others}"
    absent = [rank for rank in range(plan.ranks_here) if rank not in diaries.entries] if plan.machines == 1 else []
    suspects = absent or list(outcome.states) or diaries.behind()
    if suspects:
        found = f"{_who(outcome, suspects)} keeps the others waiting"
    else:
        found = f"{_who(outcome, list(diaries.entries))} wait for each other, or for other machines"
    return without_secrets("; ".join([f"{found}: {outcome.late}", *_errors(outcome)]))


def _fix(plan: LaunchPlan, outcome: Outcome, found: str) -> str:
    stopped = [rank for rank, state in outcome.states.items() if state.startswith(("stopped", "held"))]
    if stopped and outcome.code is None:
        return "find out who stops it: a debugger, a batch system that suspends jobs, or kill -STOP"
    if "SIGKILL" in found:
        return "dmesg | grep -i 'out of memory'; more memory (sbatch --mem), or fewer ranks (--nproc)"
    if "UsageError" in found or "RankError" in found:
        return f"correct what the message names, in the environment or in {plan.path}"
    if plan.machines > 1:
        fix = "the same command on every machine within the time limit, each with its machine_rank; main_process_ip and"
        return f"{fix} main_process_port open in the firewall; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    if outcome.code is None and not outcome.diaries.connected(plan.ranks_here):
        return "a slow disk or a busy machine? Again with a larger --timeout"
    if not plan.cpu:
        return "NCCL_DEBUG=INFO rankzero doctor; dmesg | grep -i xid; try NCCL_P2P_DISABLE=1"
    return "is the machine overloaded? Again with a larger --timeout; GLOO_SOCKET_IFNAME=lo on one machine"
