"""One rank of doctor's measurement: `python -m launch.tools.doctor.collectives FOLDER SECONDS LIMIT`.

It meets the other ranks and is watched as a rank of a training is, by `trainer.engine.runtime`. So a rank that does not
come within SECONDS, or makes no progress for LIMIT seconds, is named on stderr. The first rank of each machine writes
the result to FOLDER/result.json.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.supervise.signals import end_with_parent
from launch.tools.doctor.ranks import NO_PROGRESS
from trainer.engine.runtime import Runtime, start
from trainer.engine.signals import StopFlag
from trainer.files import write_json

SIZES = tuple(2**power for power in (12, 16, 20, 22, 24, 26))  # bytes: 4 KiB to 64 MiB
SMALL = 8  # bytes, for the latency
SECONDS = 0.4  # to spend on each size, about
MOST = 200  # repetitions of a size
PERIOD = 17  # of the integers summed: multiples up to 17 stay exact in fp32 for over a thousand ranks


def main() -> int:
    end_with_parent(signal.SIGKILL)  # there is nothing to save
    folder, seconds, limit = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    try:
        began = time.perf_counter()
        runtime = start(StopFlag(), rendezvous_seconds=seconds)
        connect = time.perf_counter() - began
        runtime.watch(limit, folder, lambda message: _print(f"{NO_PROGRESS}: {message}"))
        result = {"connect_seconds": connect} | measure(runtime)
        if os.environ["LOCAL_RANK"] == "0":
            write_json(folder / "result.json", result)
        runtime.close()
    except Exception as error:
        _print(f"rank {os.environ['RANK']}: {type(error).__name__}: {error}")
        return 1
    return 0


def _print(message: str) -> None:
    print(f"rankzero: {message}", file=sys.stderr, flush=True)


def measure(runtime: Runtime) -> dict[str, Any]:
    """Measure latency and bandwidth by size, and check the sums. All ranks call this."""
    latency = _all_reduce_seconds(runtime, SMALL, MOST)
    rows = [_row(runtime, size) for size in SIZES]
    # sums of random numbers depend on the order of adding
    tensor = torch.randn(2**20, generator=torch.Generator().manual_seed(runtime.rank)).to(runtime.device)
    dist.all_reduce(tensor)
    ranks: list[Any] = [None] * runtime.world
    dist.all_gather_object(ranks, (socket.gethostname(), hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()))
    return {
        "engine": runtime.engine.spec.name,
        "backend": dist.get_backend(),
        "hosts": [host for host, _ in ranks],
        "latency_seconds": latency,
        "same_bits": len({digest for _, digest in ranks}) == 1,
        "bandwidth": rows,
        "groups": _groups(runtime),
    }


def _groups(runtime: Runtime) -> list[dict[str, Any]]:
    """Measure the groups of a model in several copies (HSDP): the ranks of a copy, and those with the same part."""
    mesh, rows = runtime.accelerator.torch_device_mesh, []
    names = {"dp_shard": "ranks of a copy", "dp_replicate": "ranks with the same part"}
    if mesh is None or not names.keys() <= set(mesh.mesh_dim_names):
        return []
    for dimension, name in names.items():
        group = mesh[dimension].get_group()
        size, ranks = SIZES[-1], mesh[dimension].size()
        seconds = _all_reduce_seconds(runtime, size, 2, group)
        rows.append({"name": name, "ranks": ranks, "bus_gb_per_s": _bus(size, seconds, ranks)})
    return rows


def _bus(size: int, seconds: float, ranks: int) -> float:
    return size / seconds / 1e9 * 2 * (ranks - 1) / ranks


def _row(runtime: Runtime, size: int) -> dict[str, Any]:
    """Return time and bandwidth of an fp32 all-reduce of `size` bytes, and whether every element of a sum is correct.

    Algorithm bandwidth is bytes / time. Bus bandwidth is that x 2(n-1)/n for n ranks: what each link carries, to be
    compared with the hardware for any n. Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.
    """
    once = _all_reduce_seconds(runtime, size, 1)
    seconds = _all_reduce_seconds(runtime, size, max(2, min(MOST, int(SECONDS / once))))
    integers = torch.arange(size // 4, device=runtime.device) % PERIOD + 1  # their sums are exact in any order
    total = (integers * (runtime.rank + 1)).float()
    dist.all_reduce(total)
    correct = torch.equal(total, (integers * (runtime.world * (runtime.world + 1) // 2)).float())
    return {
        "bytes": size,
        "seconds": seconds,
        "algorithm_gb_per_s": size / seconds / 1e9,
        "bus_gb_per_s": _bus(size, seconds, runtime.world),
        "correct": runtime.sum([int(correct)]) == [runtime.world],
    }


def _all_reduce_seconds(runtime: Runtime, size: int, times: int, group: Any = None) -> float:
    """Return the mean seconds of one all-reduce, after one that does not count, on the slowest rank.

    Args:
        group: the ranks that take part, or all. Every rank is in one of such groups.
    """
    runtime.heartbeat(f"an all-reduce of {size} bytes", step=0)
    tensor = torch.zeros(size // 4, device=runtime.device)
    for repetitions in (1, times):
        began = time.perf_counter()
        for _ in range(repetitions):
            dist.all_reduce(tensor, group=group)
        tensor[0].item()  # wait for the device: NCCL only queues the operations
    seconds = torch.tensor((time.perf_counter() - began) / times, dtype=torch.float64, device=runtime.device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds.item())


if __name__ == "__main__":
    code = main()
    os._exit(code)  # a normal exit would wait for threads of a process group that may hang
