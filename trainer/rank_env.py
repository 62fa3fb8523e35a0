"""Clean and check the environment variables by which a launcher sets the rank of a process."""

from __future__ import annotations

import os
import sys

from trainer.errors import UsageError

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
UNSET = f"unset {' '.join(RANK_VARIABLES)}"


def clean_environment() -> None:
    """Remove empty variables of a launcher, and an OMP_NUM_THREADS that is not a number.

    Some platforms set variables to an empty text, or OMP_NUM_THREADS to `auto`.
    """
    for name in (*RANK_VARIABLES, "OMP_NUM_THREADS"):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not all(part.strip().isdigit() and int(part) > 0 for part in threads.split(",")):
        del os.environ["OMP_NUM_THREADS"]
        print(
            f"rankzero: OMP_NUM_THREADS={threads} is not a number of threads; the cores are divided among the ranks",
            file=sys.stderr,
        )


def check_environment() -> None:
    """Refuse variables of a launcher that are incomplete or contradict each other.

    Raises:
        UsageError: with the variables, their values and what to do.
    """
    given = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if name in given and not given[name].strip().isdigit():
            raise _refused(f"{name}={given[name]} is not a whole number")
    if "WORLD_SIZE" not in given:
        if "RANK" in given or "LOCAL_RANK" in given:
            raise _refused(f"{shown}: the environment names a rank, but WORLD_SIZE is not set")
        return
    world = int(given["WORLD_SIZE"])
    missing = [name for name in RANK_VARIABLES if name not in given and name != "LOCAL_WORLD_SIZE"]
    if world > 1 and missing:
        raise _refused(f"{shown}: the environment sets {world} ranks and lacks {', '.join(missing)}")
    if int(given.get("RANK", "0")) >= max(world, 1):
        raise _refused(f"{shown}: RANK must be below WORLD_SIZE")


def requested_engine(ranks: int) -> str:
    """Return the engine that the launcher has set: by RANKZERO_ENGINE, else by the variables of Accelerate."""
    if ours := os.environ.get("RANKZERO_ENGINE"):
        return ours
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp2"
    return "ddp" if ranks > 1 else "single"


def ranks_text(ranks: list[int], most: int = 8) -> str:
    """Return rank numbers as a text: [1, 2, 3, 5] is "ranks 1 to 3, 5"."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    parts = [str(a) if a == b else f"{a}{', ' if b == a + 1 else ' to '}{b}" for a, b in spans[:most]]
    more = " and others" if len(spans) > most else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(parts)}{more}"


def _refused(problem: str) -> UsageError:
    error = UsageError(
        f"{problem}. They may be left over from another launcher. For one process, or to let --config start the "
        f"ranks: {UNSET}. Otherwise start every rank with torchrun, accelerate launch or srun"
    )
    error.everywhere = False  # each process reports it: with RANK=1 left over there is no rank zero
    return error
