"""Ranks of real runs, as processes of a test (see launch/supervise/forked_ranks.py), and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.supervise import forked_ranks
from launch.supervise.forked_ranks import TIMEOUT, Ended, Hook
from trainer.engine_specs import ENGINES
from trainer.rank_env import RANK_VARIABLES

FOREIGN = (  # of the user
    *RANK_VARIABLES, "RANKZERO_RANKS", "RANKZERO_ENGINE", "RANKZERO_CONFIG", "ACCELERATE_MIXED_PRECISION",
)  # fmt: skip


def _port() -> int:
    """Return a port below those that the system gives to others, where each process of pytest-xdist has a range."""
    first = 20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = first + secrets.randbelow(2_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


forked_ranks._free_port = _port
if not ENGINES["zero2"].missing_package:  # DeepSpeed and what it compiles with take each rank seconds to import
    os.environ["DS_ACCELERATOR"] = "cpu"
    forked_ranks._context.set_forkserver_preload([*forked_ranks.PRELOADED, "deepspeed", "torch._inductor.compile_fx"])


class Ranks(forked_ranks.Ranks):
    """Ranks on the CPU in the environment that a launcher would give them, and `env`."""

    def __init__(
        self, argv: Sequence[object], logs: Path, world: int = 1, *, env: dict[str, str] | None = None, **more: Any
    ) -> None:
        own = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        own |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        super().__init__(argv, logs, world, own | (env or {}), **more)


def run_ranks(argv: Sequence[object], logs: Path, world: int = 1, **more: Any) -> Ended:
    """Starts the ranks of `python -m trainer ARGV` and waits for them; see `Ranks`."""
    return Ranks(argv, logs, world, **more).wait()


def train(
    recipe: Path, run: Path, *words: object, world: int = 1, hook: Hook | None = None, engine: str | None = None
) -> Ended:
    """`train RECIPE WORDS… --run RUN` on `world` ranks; the logs stand beside the run."""
    env = None if engine is None else engine_environment(engine)
    return run_ranks(["train", recipe, *words, "--run", run], next_logs(run), world, hook=hook, env=env)


def engine_environment(engine: str) -> dict[str, str]:
    """What `rankzero train --config cpu_…` and accelerate's launcher tell the ranks of an engine."""
    env = {"RANKZERO_ENGINE": engine}
    if engine == "fsdp2":
        env |= {"ACCELERATE_USE_CPU": "false", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if engine.startswith("zero"):
        env |= {"ACCELERATE_USE_CPU": "false", "ACCELERATE_USE_DEEPSPEED": "true"}
        env |= {"ACCELERATE_DEEPSPEED_ZERO_STAGE": engine[-1], "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage"}
    return env


def next_logs(run: Path) -> Path:
    """A folder for the output of one more start of `run`."""
    return run.with_name(f"{run.name}.logs-{sum(1 for _ in run.parent.glob(f'{run.name}.logs-*'))}")


# -- looking at a run --------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; NaN and Infinity, which are no JSON, are refused."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}, which is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text(encoding="utf-8")))


def wait_until(condition: Callable[[], Any], timeout: float = TIMEOUT) -> None:
    """Polls every 5 ms; what cannot be read yet counts as not yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            if condition():
                return
        time.sleep(0.005)
    raise AssertionError(f"not within {timeout} s: {condition}")
