"""The process's place in the run: the Accelerator, the check that what runs is what was asked for, and agreement."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.cpu_info import EMULATED, bf16_arithmetic, cores
from trainer.data.counter_rng import key
from trainer.data_parallel import DataParallel
from trainer.engine import rendezvous
from trainer.engine.engines import Engine, EngineOptions, make_engine, running_engine
from trainer.engine.signals import StopFlag
from trainer.engine.watchdog import Watchdog
from trainer.engine_specs import ENGINES
from trainer.errors import Preempted, RankError, UsageError
from trainer.rank_env import check_environment, clean_environment, requested_engine

log = logging.getLogger("rankzero")

# Process groups, held to the end of the process. If DDP's reducer were the last to hold one, it would join gloo's
# threads without giving up Python's lock, for which one of them may wait to free a tensor: the rank would hang.
_KEPT: list[Any] = []


@dataclass
class Runtime:
    """One rank. All methods that say "all ranks" must be entered by all ranks, in the same order."""

    engine: Engine
    stop: StopFlag
    watchdog: Watchdog | None = None

    def watch(self, limit: float, folder: Path, told: Callable[[str], None]) -> None:
        """From here on a rank that makes no progress for `limit` seconds ends the run; see `watchdog`."""
        if self.world > 1 and limit:
            self.watchdog = Watchdog(self.data_parallel, limit, folder, told)

    def heartbeat(self, where: str, step: int | None = None) -> None:
        """This rank has got here: it does not hang."""
        if self.watchdog is not None:
            self.watchdog.heartbeat(where, step)

    @property
    def accelerator(self) -> Accelerator:
        return self.engine.accelerator

    @property
    def data_parallel(self) -> DataParallel:
        return self.engine.data_parallel

    @property
    def rank(self) -> int:
        return self.data_parallel.rank

    @property
    def world(self) -> int:
        return self.data_parallel.size

    @property
    def main(self) -> bool:
        return self.data_parallel.main

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def sum(self, values: list[int]) -> list[int]:
        """Integers summed over all ranks. Waits for all ranks."""
        if self.world == 1:
            return values
        self.heartbeat("a sum over ranks")
        tensor = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor)
        return cast("list[int]", tensor.tolist())

    def sum_float(self, values: list[float]) -> list[float]:
        """Floats (float64) summed over all ranks. Waits for all ranks."""
        if self.world == 1:
            return values
        self.heartbeat("a sum over ranks")
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return cast("list[float]", tensor.tolist())

    def gather(self, value: Any) -> list[Any] | None:
        """What each rank holds, on rank zero; None elsewhere. Waits for all ranks."""
        if self.world == 1:
            return [value]
        self.heartbeat("a gathering on rank zero")
        found: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(value, found)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank zero's value on all ranks. Waits for rank zero."""
        if self.world == 1:
            return value
        self.heartbeat("a broadcast of rank zero")
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """All ranks wait for each other."""
        if self.world > 1:
            self.heartbeat("a barrier")
            dist.barrier()

    def on_main(self, work: Any) -> Any:
        """Runs `work()` on rank zero; its result, or its error, is that of all ranks. All ranks wait."""
        result, error = None, None
        if self.main:
            try:
                with self.watchdog.working_alone() if self.watchdog else nullcontext():
                    result = work()
            except Exception as caught:
                error = caught
        result, error = self.broadcast((result, error))
        if error is not None:
            error.everywhere = True
            raise error
        return result

    def check_stop(self, where: str) -> None:
        """All ranks agree on whether one of them has been told to stop.

        Raises:
            Preempted: on all ranks alike.
        """
        if self.sum([int(self.stop.received is not None)])[0]:
            raise self.stopped(where)

    def stopped(self, where: str) -> Preempted:
        """What all ranks raise when they have agreed to stop."""
        by = self.stop.received or "a signal to another rank"
        return Preempted(f"stopped by {by} {where}: all is saved, the same command goes on")

    def close(self) -> None:
        """Ends the process group: rank zero may now work for hours without a collective that times out."""
        if self.world > 1 and dist.is_initialized():
            self.wait()
            self.leave()

    def lost_connection(self, error: BaseException) -> bool:
        """Whether this is what a rank meets when another one has gone."""
        known = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
        return self.world > 1 and known

    def let_watchdog_end(self) -> None:
        """When the watchdog has found who hangs, an error of this rank is no more than a consequence: it ends us."""
        if self.watchdog is not None and self.watchdog.spoken.is_set():
            threading.Event().wait()

    def announce_failure(self) -> None:
        """This rank ends alone, with an error: the watchdogs of the others do not let them wait for it."""
        if self.watchdog is not None:
            self.watchdog.leave()

    def leave(self) -> None:
        """Drops the process group after an error, without waiting for ranks that may be dead."""
        if self.watchdog is not None:
            self.watchdog.close()
            self.watchdog = None
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(
    stop: StopFlag,
    *,
    deterministic: bool = False,
    accumulation: int = 1,
    clip_norm: float = 0.0,
    tf32: bool = False,
    rendezvous_seconds: float = rendezvous.SECONDS,
) -> Runtime:
    """Makes the Accelerator for the environment that a launcher has set up, and checks it.

    Raises:
        RankError: another engine or number of ranks runs than was asked for, or a rank did not come.
        UsageError: variables of a launcher that contradict each other; fp16 on a CPU, where it would silently be fp32.
    """
    clean_environment()
    check_environment()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    requested = requested_engine(ranks)
    fp16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16"
    if on_cpu and fp16 and requested in ENGINES and not ENGINES[requested].fp16_on_cpu:
        configs = "cpu_bf16 or cpu" if bf16_arithmetic() else "cpu"
        raise UsageError(f"fp16 needs a GPU: on a CPU it would silently be fp32; choose --config {configs}")
    _share_cores(ranks, on_cpu)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = EngineOptions(on_cpu, accumulation, clip_norm)
    if ranks > 1 and not dist.is_initialized():
        rendezvous.meet(options.backend, rendezvous_seconds, functools.partial(_stop_waiting, stop))
    runtime = Runtime(make_engine(requested, options), stop)
    if on_cpu and runtime.main:
        _warn_of_emulation(runtime.accelerator.mixed_precision)
    if dist.is_initialized():
        _KEPT.append(dist.group.WORLD)
    _check(runtime)
    return runtime


def _stop_waiting(stop: StopFlag) -> None:
    if stop.received:
        error = Preempted(f"stopped by {stop.received} while waiting for the other ranks: nothing was started")
        error.everywhere = False
        raise error


def _warn_of_emulation(precision: str) -> None:
    """bf16 on a processor without bf16 arithmetic. `rankzero train` has warned before it started the ranks."""
    if precision == "bf16" and "RANKZERO_NOTED" not in os.environ and not bf16_arithmetic():
        log.warning("%s: use --config cpu, or mixed_precision: 'no'", EMULATED)


def _share_cores(ranks: int, on_cpu: bool) -> None:
    """Threads x ranks ≤ cores: with more, small matrix products wait a scheduler slice each (10 times slower)."""
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        torch.set_num_threads(max(1, cores() // local))


def _check(runtime: Runtime) -> None:
    """Several wrong configurations train silently alone, or without the engine asked for (docs/how-to/launch.md)."""
    asked_ranks = int(os.environ.get("RANKZERO_RANKS") or os.environ.get("WORLD_SIZE") or _parents_ranks() or 1)
    if runtime.world != asked_ranks:
        raise RankError(
            f"{asked_ranks} ranks were asked for but {runtime.world} runs here: each would train alone. "
            "On a CPU use distributed_type MULTI_GPU with ACCELERATE_USE_CPU=true (accelerate_configs/cpu.yaml), "
            "not MULTI_CPU or --cpu"
        )
    requested, running = runtime.engine.spec.name, running_engine(runtime.accelerator)
    if running != requested:
        raise RankError(
            f"engine {requested} was asked for but {running} runs: the Accelerate config is not in force; "
            "unset ACCELERATE_USE_CPU for ZeRO and FSDP, and compare your file with accelerate_configs/"
        )


def _parents_ranks() -> int | None:
    """`--num_processes N` of an `accelerate launch` that started this process without telling it a world size."""
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
    """Dropout and noise of a micro-batch belong to (seed, step, lane): the same on any rank and after any restart.

    `part`: of a micro-batch that is split because a rank ran out of memory.
    """
    torch.manual_seed(key(seed, "noise", step, lane, *([part] if part else [])) % 2**63)
