"""One rank of a run: its engine, the check that the right engine runs, and communication with the other ranks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from trainer.cpu_info import EMULATED, bf16_arithmetic, cores
from trainer.data.counter_rng import key
from trainer.data_parallel import run_on_main
from trainer.engine import rendezvous
from trainer.engine.engines import Engine, EngineOptions, make_engine, running_engine
from trainer.engine.host_group import HostGroup
from trainer.engine.signals import StopFlag
from trainer.engine.watchdog import Watchdog
from trainer.engine_specs import ENGINES
from trainer.errors import Preempted, RankError, UsageError
from trainer.models.float8_support import check_float8
from trainer.rank_env import check_environment, clean_environment, requested_engine

log = logging.getLogger("rankzero")


class Runtime:
    """One rank. Methods that say "all ranks" must be entered by all ranks, in the same order."""

    def __init__(self, engine: Engine, stop: StopFlag) -> None:
        self.engine, self.stop = engine, stop
        self.accelerator, self.data_parallel = engine.accelerator, engine.data_parallel
        self.device = engine.accelerator.device
        self.rank, self.world, self.main = self.data_parallel.rank, self.data_parallel.size, self.data_parallel.main
        self.watchdog: Watchdog | None = None
        self._host = HostGroup() if self.world > 1 else None

    # -- communication ---------------------------------------------------------------------------------------------

    def sum(self, values: list[Any], dtype: torch.dtype = torch.int64) -> list[Any]:
        """Return the numbers summed over all ranks, as integers or in the precision of `dtype`. All ranks."""
        return self.start_sum(values, dtype)()

    def start_sum(self, values: list[Any], dtype: torch.dtype = torch.int64) -> Callable[[], list[Any]]:
        """Start a sum as `sum` in the background. Return a function that waits for it and returns it. All ranks.

        Sums are waited for in the order in which they were started.
        """
        if self._host is None:
            return lambda: values
        finish = self._host.start_sum(values, dtype)

        def waited() -> list[Any]:
            self.heartbeat("a sum over ranks")
            return finish()

        return waited

    def all_of(self, value: int) -> list[int]:
        """Return the number of each rank on all ranks. All ranks."""
        if self.world == 1:
            return [value]
        numbers = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        dist.all_gather_into_tensor(numbers, torch.tensor([value], device=self.device))
        return list(numbers.tolist())

    def gather(self, value: Any) -> list[Any] | None:
        """Return the value of each rank on rank zero, None elsewhere. All ranks."""
        if self._host is None:
            return [value]
        self.heartbeat("a gathering on rank zero")
        return self._host.gather(value, self.world, self.main)

    def collect(self, content: bytes) -> Iterator[bytes]:
        """Yield the bytes of each rank on rank zero, one rank's at a time, and nothing elsewhere. All ranks."""
        if self._host is None:
            yield content
            return
        self.heartbeat("sending to rank zero")
        if not self.main:
            self._host.send(content)
            return
        yield content
        for rank in range(1, self.world):
            self.heartbeat(f"receiving from rank {rank}")
            yield self._host.receive(rank)

    def broadcast(self, value: Any) -> Any:
        """Return rank zero's value on all ranks. All ranks."""
        if self._host is None:
            return value
        self.heartbeat("a broadcast of rank zero")
        return self._host.broadcast(value)

    def wait(self) -> None:
        """Wait for all ranks."""
        if self._host is not None:
            self.heartbeat("a barrier")
            self._host.wait()

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work()` on rank zero. Return its result, or raise its error, on all ranks. All ranks."""

        def alone() -> Any:
            with self.watchdog.working_alone() if self.watchdog else nullcontext():
                return work()

        return run_on_main(self.main, alone, self.broadcast)

    # -- stopping --------------------------------------------------------------------------------------------------

    def check_stop(self, where: str) -> None:
        """Stop all ranks if one of them has received a stop signal. All ranks.

        Raises:
            Preempted: on all ranks alike.
        """
        if self.sum([int(self.stop.received is not None)])[0]:
            raise self.stopped(where)

    def stopped(self, where: str) -> Preempted:
        """Return the error that all ranks raise when they have agreed to stop."""
        source = self.stop.received or "a signal to another rank"
        return Preempted(f"stopped by {source} {where}: everything is saved, and the same command resumes the run")

    def close(self) -> None:
        """End the process group, so that no collective times out while rank zero works for hours. All ranks."""
        if self.world > 1 and dist.is_initialized():
            self.wait()
            self.leave()

    def leave(self) -> None:
        """Destroy the process group without waiting for ranks that may be dead."""
        if self.watchdog is not None:
            self.watchdog.close()
            self.watchdog = None
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def lost_connection(self, error: BaseException) -> bool:
        """Whether an error is what a rank sees when another one has died."""
        known = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
        return self.world > 1 and known

    # -- the watchdog ----------------------------------------------------------------------------------------------

    def watch(self, limit: float, folder: Path, report: Callable[[str], None]) -> None:
        """End the run if a rank makes no progress for `limit` seconds from now on; see `Watchdog`."""
        if self.world > 1 and limit:
            self.watchdog = Watchdog(self.data_parallel, limit, folder, report)

    def heartbeat(self, where: str, step: int | None = None) -> None:
        """Record progress of this rank."""
        if self.watchdog is not None:
            self.watchdog.heartbeat(where, step)

    def let_watchdog_end(self) -> None:
        """Wait for the watchdog to end the process if it has found a hanging rank, which explains this rank's error."""
        if self.watchdog is not None and self.watchdog.reported.is_set():
            threading.Event().wait()

    def announce_failure(self) -> None:
        """Notify the watchdogs of the other ranks not to wait for this rank, which ends with an error."""
        if self.watchdog is not None:
            self.watchdog.announce_failure()


def start(
    stop: StopFlag,
    *,
    deterministic: Literal["warn", "error"] | None = None,
    accumulation: int = 1,
    clip_norm: float = 0.0,
    tf32: bool = False,
    rendezvous_seconds: float = rendezvous.SECONDS,
) -> Runtime:
    """Make the engine for the environment that a launcher has set up, and check it.

    Args:
        deterministic: choose deterministic kernels. For an operation without one, warn or raise an error.

    Raises:
        RankError: another engine or number of ranks runs than was requested, or a rank did not come.
        UsageError: variables of a launcher that contradict each other; fp16 on a CPU, where it would silently be fp32;
            fp8 on a device without it.
    """
    clean_environment()
    check_environment()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    requested = requested_engine(ranks)
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision == "fp8" and requested in ENGINES:
        check_float8(ENGINES[requested], on_cpu=on_cpu)
    if on_cpu and precision == "fp16" and requested in ENGINES and not ENGINES[requested].fp16_on_cpu:
        configs = "cpu_bf16 or cpu" if bf16_arithmetic() else "cpu"
        raise UsageError(f"fp16 needs a GPU: on a CPU it would silently be fp32; choose --config {configs}")
    _set_threads(ranks, on_cpu)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    if deterministic is not None:
        torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = EngineOptions(on_cpu, accumulation, clip_norm, float8=precision == "fp8")
    with rendezvous.StartLimit(rendezvous_seconds) if ranks > 1 else nullcontext() as limit:
        if limit and not dist.is_initialized():

            def check() -> None:
                limit.progress()
                _stop_waiting(stop)

            rendezvous.meet(options.backend, rendezvous_seconds, check)
        elif ranks == 1:
            rendezvous.number_attempt()
        runtime = Runtime(make_engine(requested, options), stop)
    if on_cpu and runtime.main:
        _warn_of_emulation(runtime.engine.precision)
    _check(runtime)
    return runtime


def _stop_waiting(stop: StopFlag) -> None:
    if stop.received:
        error = Preempted(f"stopped by {stop.received} while waiting for the other ranks: nothing was started")
        error.everywhere = False
        raise error


def _warn_of_emulation(precision: str) -> None:
    """Warn of bf16 on a processor without bf16 arithmetic, unless `rankzero train` has done so before the start."""
    if precision == "bf16" and "RANKZERO_NOTED" not in os.environ and not bf16_arithmetic():
        log.warning("%s: use --config cpu, or mixed_precision: 'no'", EMULATED)


def _set_threads(ranks: int, on_cpu: bool) -> None:
    """Keep threads x ranks ≤ cores. With more, small matrix products wait for the scheduler (10 times slower)."""
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        torch.set_num_threads(max(1, cores() // local))


def _check(runtime: Runtime) -> None:
    """Compare what runs with what was requested. Several wrong configurations silently train in one process, or
    without the requested engine (docs/how-to/launch.md).
    """
    ranks = int(os.environ.get("RANKZERO_RANKS") or os.environ.get("WORLD_SIZE") or _ranks_of_launcher() or 1)
    if runtime.world != ranks:
        raise RankError(
            f"{ranks} ranks were requested but {runtime.world} runs here: each would train alone. "
            "On a CPU use distributed_type MULTI_GPU with ACCELERATE_USE_CPU=true (accelerate_configs/cpu.yaml), "
            "not MULTI_CPU or --cpu"
        )
    requested, running = runtime.engine.spec.name, running_engine(runtime.accelerator)
    if running != requested:
        raise RankError(
            f"engine {requested} was requested but {running} runs: the Accelerate config is not in effect; "
            "unset ACCELERATE_USE_CPU for ZeRO and FSDP, and compare your file with accelerate_configs/"
        )


def _ranks_of_launcher() -> int | None:
    """Return `--num_processes` of an `accelerate launch` that started this process without setting WORLD_SIZE."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not any("accelerate" in word for word in words):
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or following
            return int(value) if value.isdigit() else None
    return None


def seed_for(seed: int, step: int, lane: int, part: int = 0) -> None:
    """Seed dropout and noise of a micro-batch by (seed, step, lane): the same on any rank and after any restart.

    `part` counts the parts of a micro-batch that is split because a rank ran out of memory.
    """
    torch.manual_seed(key(seed, "noise", step, lane, *([part] if part else [])) % 2**63)
