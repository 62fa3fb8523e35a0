"""Set the variables of a launcher from those of SLURM, for ranks that `srun python -m trainer` has started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from trainer.errors import UsageError


def adopt_ranks() -> None:
    """Set RANK, WORLD_SIZE and the rendezvous address. Do nothing outside srun, for one task, or below a launcher.

    Raises:
        UsageError: the command runs in one task of `srun --pty` only, or MASTER_ADDR is unset and the first node's
            name cannot be found.
    """
    env = os.environ
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))  # set by srun, not in the shell of a batch script
    if "WORLD_SIZE" in env or tasks == 1:
        return
    if "SLURM_PTY_PORT" in env and _parent() != "slurmstepd":
        raise UsageError(
            f"this command was typed in the shell of task {env['SLURM_PROCID']} of `srun --pty` with {tasks} tasks: "
            f"SLURM_STEP_NUM_TASKS={tasks}, and the other {tasks - 1} tasks do not run it. Start the shell with "
            f"`srun --ntasks=1 --pty`, use `rankzero train --config cpu`, or `srun --ntasks={tasks} python -m trainer`"
        )
    env |= {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]),
    }
    if len(env.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and env.get("CUDA_VISIBLE_DEVICES"):
        env["LOCAL_RANK"] = "0"  # each task sees one GPU only
    env.setdefault("MASTER_PORT", str(10_000 + int(env["SLURM_JOB_ID"]) % 20_000))  # below the ephemeral range
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _first(env["SLURM_STEP_NODELIST"])


def _parent() -> str:
    """Return the name of the parent process, which is slurmstepd if srun started this one directly."""
    try:
        return Path(f"/proc/{os.getppid()}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _per_node(tasks: str) -> list[int]:
    """Expand the tasks per node: `4(x2),3` is 4, 4, 3."""
    found: list[int] = []
    for part in tasks.split(","):
        number, _, times = part.rstrip(")").partition("(x")
        found += [int(number)] * int(times or 1)
    return found


def _first(nodes: str) -> str:
    try:
        asked = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],  # noqa: S607 - its folder differs between sites
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"the first of the nodes {nodes} is unknown ({error}): set MASTER_ADDR to its name") from None
    return asked.stdout.split()[0]
