"""Ranks of real runs, as processes of a test.

They are forked from a server that has imported everything once (multiprocessing's forkserver), because importing torch
and its friends takes longer than a tiny training. A rank then runs the command line of `python -m trainer` in the
environment that a launcher would give it. A `hook` (see hooks.py) is called in the rank first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds for one start of a tiny run; generous, because the machine may be busy
ALONE = 20  # seconds that the other ranks get to leave by themselves once one has died, as a launcher would give them
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Hook = Callable[[], None]

_context = multiprocessing.get_context("forkserver")
# Everything that a run imports, late imports of the libraries included.
_context.set_forkserver_preload(
    [
        *(
            "trainer",
            "trainer.cli",
            "trainer.compose",
            "trainer.engine.session",
            "trainer.engine.finished",
            "trainer.evaluation.metrics",
        ),
        *("torch._dynamo", "torch._inductor.config", "torch.onnx", "datasets.io.generator", "evaluate", "sacrebleu"),
        *("transformers.pipelines", "transformers.models.auto.tokenization_auto", "huggingface_hub.dataclasses"),
    ]
)


@dataclass(frozen=True)
class Ended:
    """How the ranks of one start ended: exit codes (negative: killed by that signal), stdout and stderr of each."""

    codes: list[int]
    out: list[str]
    err: list[str]

    @property
    def code(self) -> int:
        """Rank zero's."""
        return self.codes[0]

    @property
    def text(self) -> str:
        return "\n".join(f"-- rank {i} --\n{o}{e}" for i, (o, e) in enumerate(zip(self.out, self.err, strict=True)))

    def check(self, code: int = 0) -> Ended:
        """Asserts that every rank ended with `code`."""
        assert set(self.codes) == {code}, f"{self.codes}\n{self.text}"
        return self


class Ranks:
    """The ranks of one start, running."""

    def __init__(
        self,
        argv: Sequence[object],
        logs: Path,
        world: int = 1,
        *,
        hook: Hook | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> None:
        self._logs = logs
        logs.mkdir(parents=True)
        (logs / "stdin").write_bytes(stdin)
        words, port = [str(word) for word in argv], _free_port()
        self.processes = [
            _context.Process(target=_rank, args=(words, _environment(rank, world, port, env), logs, rank, hook))
            for rank in range(world)
        ]
        with _without_main():
            for process in self.processes:
                process.start()

    def signal(self, number: int, rank: int = 0) -> None:
        """Sends a signal to one rank."""
        os.kill(self.processes[rank].pid or 0, number)

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        """Waits for all ranks; those that hang are ended (-6) and say where."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode not in (0, 75):
                deadline = min(deadline, time.monotonic() + ALONE)
        for rank, process in enumerate(self.processes):
            if process.exitcode is None:
                self.signal(signal.SIGABRT, rank)  # faulthandler writes where it hangs
                process.join(5)
                process.kill()
                process.join()
        read = [
            [(self._logs / f"{kind}-{rank}").read_text(errors="replace") for rank in range(len(self.processes))]
            for kind in ("out", "err")
        ]
        return Ended([process.exitcode or 0 for process in self.processes], *read)


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


def _environment(rank: int, world: int, port: int, more: dict[str, str] | None) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if world > 1:
        values = (rank, world, rank, world, "127.0.0.1", port)
        env |= dict(zip(LAUNCHER, map(str, values), strict=True))
    return env | (more or {})


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A child would run this process's main module once more, and that is pytest."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank(argv: list[str], env: dict[str, str], logs: Path, rank: int, hook: Hook | None) -> None:
    """Runs in the forked process."""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(logs / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    faulthandler.enable()
    multiprocessing.set_start_method("fork", force=True)  # back to the default, for loader processes
    sys.stdin = (logs / "stdin").open(encoding="utf-8")
    for name in (*LAUNCHER, "RANKZERO_RANKS", "RANKZERO_ENGINE", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
    os.environ.update(env)
    sys.argv = ["rankzero", *argv]
    if hook is not None:
        hook()
    from trainer.cli import app, run_app

    code = run_app(app)
    sys.stdout.flush()
    sys.exit(code)


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
