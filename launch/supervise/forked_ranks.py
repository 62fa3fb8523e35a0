"""Fork ranks from a process that has imported everything: many short runs on one machine, without seconds of imports.

The process (multiprocessing's forkserver) imports the libraries once. Each rank is forked from it and runs the command
line of `python -m trainer` in an environment of its own. `rankzero verify` and the tests start dozens of runs so.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import trainer
from launch.supervise.exit_codes import PREEMPTED
from launch.supervise.processes import kill_tree
from trainer.cli import app, run_app
from trainer.rank_env import RANK_VARIABLES

TIMEOUT = 300.0  # seconds for one start of a short run; generous, because the machine may be busy
EXIT_SECONDS = 40.0  # for the other ranks to end by themselves after one has died

Hook = Callable[[], None]

PRELOADED = [  # everything that a run imports, late imports of the libraries included
    *("trainer", "trainer.cli", "trainer.api", "trainer.evaluation.metrics"),
    *("trainer.engine.session", "trainer.engine.trained_run", "trainer.post_training"),
    *("torch._dynamo", "torch._inductor.config", "torch.onnx", "datasets.io.generator", "sacrebleu"),
    *("transformers.pipelines", "transformers.models.auto.tokenization_auto", "huggingface_hub.dataclasses"),
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Ended:
    """Exit codes (negative: killed by that signal), stdout and stderr of the ranks of one start.

    `late`: some were ended by SIGABRT, since they had not ended within the time limit.
    """

    codes: list[int]
    out: list[str]
    err: list[str]
    late: bool = False

    @property
    def code(self) -> int:
        """The exit code of rank zero."""
        return self.codes[0]

    @property
    def text(self) -> str:
        """The output of all ranks."""
        return "\n".join(f"-- rank {i} --\n{o}{e}" for i, (o, e) in enumerate(zip(self.out, self.err, strict=True)))

    def check(self, code: int = 0) -> Ended:
        """Assert that every rank ended with `code`."""
        assert set(self.codes) == {code}, f"{self.codes}\n{self.text}"
        return self


class Ranks:
    """The running ranks of one start.

    Args:
        argv: arguments of `python -m trainer`.
        logs: a new folder for what the ranks print.
        world: number of ranks.
        env: the complete environment of each rank, OMP_NUM_THREADS included. Its rank variables are added.
        hook: called in each rank before the command.
        stdin: what the ranks may read.
    """

    def __init__(
        self,
        argv: Sequence[object],
        logs: Path,
        world: int,
        env: Mapping[str, str],
        *,
        hook: Hook | None = None,
        stdin: bytes = b"",
    ) -> None:
        self._logs = logs
        logs.mkdir(parents=True)
        (logs / "stdin").write_bytes(stdin)
        for rank in range(world):  # here, since a rank may be killed before it opens its own
            for kind in ("out", "err"):
                (logs / f"{kind}-{rank}").touch()
        words, port = [str(word) for word in argv], _free_port()
        self.processes = [
            _context.Process(
                target=_run_rank, args=(words, {**env, **_rank_variables(rank, world, port)}, logs, rank, hook)
            )
            for rank in range(world)
        ]
        with _without_main():
            for process in self.processes:
                process.start()

    @property
    def running(self) -> bool:
        """Whether all ranks run."""
        return all(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int = 0) -> None:
        """Send a signal to one rank."""
        os.kill(self.processes[rank].pid or 0, number)

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        """Wait for all ranks. After the time limit, end the remaining ones by SIGABRT, so that they print a stack."""
        deadline = time.monotonic() + timeout
        while running := [process for process in self.processes if process.exitcode is None]:
            if (left := deadline - time.monotonic()) <= 0:
                break
            multiprocessing.connection.wait([process.sentinel for process in running], left)
            if any(process.exitcode not in (None, 0, PREEMPTED) for process in running):
                deadline = min(deadline, time.monotonic() + EXIT_SECONDS)
        late = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        for rank in late:
            self.signal(signal.SIGABRT, rank)  # faulthandler prints the stack
            self.processes[rank].join(5)
        self.end()
        out, err = (
            [(self._logs / f"{kind}-{rank}").read_text(errors="replace") for rank in range(len(self.processes))]
            for kind in ("out", "err")
        )
        return Ended([process.exitcode or 0 for process in self.processes], out, err, bool(late))

    def end(self) -> None:
        """Kill the ranks that still run, and the processes that they started."""
        for process in self.processes:
            if process.exitcode is None:
                kill_tree(process.pid or 0)
            process.join()


def _rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    if world == 1:
        return {}
    return dict(zip(RANK_VARIABLES, map(str, (rank, world, rank, world, "127.0.0.1", port)), strict=True))


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module of this process, which a child would run again."""
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


def _run_rank(argv: list[str], env: dict[str, str], logs: Path, rank: int, hook: Hook | None) -> None:
    """Run the command in the forked process."""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(logs / f"{name}-{rank}", os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    faulthandler.enable()
    multiprocessing.set_start_method("fork", force=True)  # the default again, for loader processes
    sys.stdin = (logs / "stdin").open(encoding="utf-8")
    os.environ.clear()
    os.environ.update({**trainer.ENVIRONMENT, **env})
    sys.argv = ["rankzero", *argv]
    import torch

    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))  # the forkserver has read its own environment, not this one
    if hook is not None:
        hook()
    code = run_app(app)
    sys.stdout.flush()
    sys.exit(code)
