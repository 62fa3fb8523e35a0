"""One rank of the doctor's measurement: `python -m launch.doctoring.rank FOLDER PATIENCE`, started by a launcher.

Writes what it is about to do, and what it found, line by line into FOLDER/rank-N.jsonl: so the doctor knows where a
rank was when it stopped, even if it stopped for ever. Nothing here waits without a limit but the collectives
themselves, which the doctor watches.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.shim import end_with_parent

SIZES = tuple(2**power for power in (12, 16, 20, 22, 24, 26))  # bytes: 4 KiB to 64 MiB
SMALL = 8  # bytes, for the latency
SECONDS = 0.4  # to be spent on each size, about
MOST = 200  # repetitions of a size
PERIOD = 17  # of the numbers summed: a whole number times at most 17 is exact in fp32 for over a thousand ranks


class Diary:
    """Lines of JSON, each on disk before the next thing is done."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **entry: Any) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), **entry}) + "\n")


def main() -> int:
    end_with_parent(signal.SIGKILL)  # nothing to save: a launcher that is gone leaves nobody behind
    folder, patience = Path(sys.argv[1]), float(sys.argv[2])
    diary = Diary(folder / f"rank-{os.environ['RANK']}.jsonl")
    diary.write(stage="loading", pid=os.getpid())
    try:
        Measurement(diary, patience).run()
    except Exception as error:
        diary.write(error=f"{type(error).__name__}: {error}".splitlines()[0])
        return 1
    return 0


class Measurement:
    """Connects as a training would, and measures. All ranks do the same in the same order."""

    def __init__(self, diary: Diary, patience: float) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        from trainer.engine import runtime
        from trainer.engine.signals import StopFlag

        self._torch, self._dist, self._diary, self._patience = torch, dist, diary, patience
        diary.write(stage="connecting")
        began = time.perf_counter()
        self._runtime = runtime.start(StopFlag())
        self._seconds_to_connect = time.perf_counter() - began
        # a client of the launcher's store: it names those who did not come on any backend
        self._store = next(iter(rendezvous("env://", timeout=timedelta(seconds=patience))))[0]

    def run(self) -> None:
        """Writes one line `result` on each rank, or `missing` when ranks did not come."""
        here = self._runtime
        self._roll_call("latency")
        latency = self._slowest(self._time(SMALL, MOST))
        rows = [self._row(number) for number in SIZES]
        self._roll_call("comparing bits")
        equal = self._same_bits()
        began = time.perf_counter()
        self._roll_call("barrier")
        barrier = time.perf_counter() - began
        places = here.gather([socket.gethostname(), str(here.device)])
        self._diary.write(
            result={
                "engine": here.engine,
                "backend": self._dist.get_backend(),
                "ranks": here.world,
                "places": places or [],
                "connect_seconds": self._seconds_to_connect,
                "latency_seconds": latency,
                "barrier_seconds": barrier,
                "bits_equal": equal,
                "bandwidth": rows,
            }
        )
        self._diary.write(stage="leaving")
        here.close()

    def _roll_call(self, stage: str) -> None:
        """All ranks are there before `stage` begins; those that do not come in time are named."""
        here = self._runtime
        self._diary.write(stage=f"roll call before {stage}")
        missing = roll_call(self._store, stage, here.rank, here.world, self._patience)
        if missing:
            self._diary.write(missing=missing, stage_missed=stage)
            raise TimeoutError(f"no sign of ranks {missing} within {self._patience:g} s")
        self._diary.write(stage=stage)

    def _row(self, size: int) -> dict[str, Any]:
        """Time and bandwidth of an all-reduce of `size` bytes, fp32, and whether the sum is right.

        Algorithm bandwidth = bytes / time; bus bandwidth = that x 2(n-1)/n for n ranks: what each link carries, to be
        compared with the hardware whatever n is. NVIDIA nccl-tests, doc/PERFORMANCE.md.
        """
        self._roll_call(f"all-reduce of {size} bytes")
        correct = self._sums_right(size)
        once = self._slowest(self._time(size, 1))
        seconds = self._slowest(self._time(size, max(2, min(MOST, int(SECONDS / once)))))
        world = self._runtime.world
        return {
            "bytes": size,
            "seconds": seconds,
            "algorithm_gb_per_s": size / seconds / 1e9,
            "bus_gb_per_s": size / seconds / 1e9 * 2 * (world - 1) / world,
            "correct": correct,
        }

    def _time(self, size: int, times: int) -> float:
        """Seconds for one all-reduce, the mean of `times` after one that does not count."""
        tensor = self._torch.zeros(size // 4, device=self._runtime.device)
        self._dist.all_reduce(tensor)
        self._finish()
        began = time.perf_counter()
        for _ in range(times):
            self._dist.all_reduce(tensor)
        self._finish()
        return (time.perf_counter() - began) / times

    def _finish(self) -> None:
        """Waits for the device: NCCL only queues."""
        if self._runtime.device.type == "cuda":
            self._torch.cuda.synchronize()

    def _slowest(self, seconds: float) -> float:
        """The largest over all ranks, the same on all."""
        tensor = self._torch.tensor(seconds, dtype=self._torch.float64, device=self._runtime.device)
        self._dist.all_reduce(tensor, op=self._dist.ReduceOp.MAX)
        return float(tensor.item())

    def _sums_right(self, size: int) -> bool:
        """Whole numbers, so that the sum is exact in any order: every element is compared, on all ranks."""
        rank, world = self._runtime.rank, self._runtime.world
        numbers = self._torch.arange(size // 4, dtype=self._torch.int32, device=self._runtime.device) % PERIOD + 1
        tensor = (numbers * (rank + 1)).float()
        self._dist.all_reduce(tensor)
        wrong = int((tensor != (numbers * (world * (world + 1) // 2)).float()).any().item())
        return self._runtime.sum([wrong]) == [0]

    def _same_bits(self) -> bool:
        """Sums of random fp32 numbers, which depend on the order of adding, are the same bits on all ranks."""
        generator = self._torch.Generator().manual_seed(self._runtime.rank)
        tensor = self._torch.randn(2**20, generator=generator).to(self._runtime.device)
        self._dist.all_reduce(tensor)
        digest = hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()
        found: list[Any] = [None] * self._runtime.world
        self._dist.all_gather_object(found, digest)
        return len(set(found)) == 1


def roll_call(store: Any, stage: str, rank: int, world: int, patience: float) -> list[int]:
    """A barrier with a time limit: waits until all ranks have come to `stage`; those that did not within `patience` s.

    Through a torch.distributed store, not a collective: so it ends on every rank, and with the names, on any backend.
    """
    from torch.distributed import DistStoreError

    names = [f"rankzero-doctor/{stage}/{number}" for number in range(world)]
    store.set(names[rank], "here")
    try:
        store.wait(names, timedelta(seconds=patience))
    except DistStoreError:
        return [number for number, name in enumerate(names) if not store.check([name])]
    return []


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python's own tidying up waits for threads of a process group that may hang
