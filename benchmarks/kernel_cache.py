"""How a process grows by the kernels that oneDNN keeps for each shape, and what keeping fewer of them costs.

    python -m benchmarks.kernel_cache [--capacities 1024 256 64] [--shapes 1500] [--json FILE]

A bf16 linear layer (256 to 1,024) runs forward and backward on batches of random numbers of rows, in a process of one
thread for each ONEDNN_PRIMITIVE_CACHE_CAPACITY. Printed: growth of its memory, and its time over that of the first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.harness import machine, write


def measure(shapes: int) -> dict[str, float]:
    """Return MB by which this process grows, and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw, layer = random.Random(0), torch.nn.Linear(256, 1024).bfloat16()
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    for _ in range(shapes):
        rows = torch.randn(draw.randint(1, 4096), 256, dtype=torch.bfloat16, requires_grad=True)
        out = layer(rows)
        out.backward(torch.ones_like(out))
    seconds = time.perf_counter() - start
    del rows, out
    ctypes.CDLL(None).malloc_trim(0)  # freed blocks that malloc keeps are no kernels
    return {"mb": (process.memory_info().rss - before) / 1e6, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capacities", type=int, nargs="+", default=[1024, 256, 64], help="kernels that are kept")
    parser.add_argument("--shapes", type=int, default=1500, help="batches, each with its own number of rows")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.shapes)))
        return
    rows: list[dict[str, Any]] = []
    for capacity in given.capacities:
        command = [sys.executable, "-m", "benchmarks.kernel_cache", "--here", "--shapes", str(given.shapes)]
        env = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(capacity), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"capacity": capacity, **json.loads(done.stdout)})
        ratio = rows[-1]["seconds"] / rows[0]["seconds"]
        print(f"{capacity:5d} kernels: grew by {rows[-1]['mb']:,.0f} MB, {ratio:.2f} times the time")
    if given.json:
        write(given.json, {"machine": machine(), "shapes": given.shapes, "rows": rows})


if __name__ == "__main__":
    main()
