"""Seconds in which rank zero compares a checkpoint with its hashes at a start, by the number of files at once.

    python -m benchmarks.checkpoint_check [--parameters 150] [--json benchmarks/results/checkpoint_check.json]

A checkpoint of so many million fp32 parameters with the two moments of AdamW is saved as by one process, 12 bytes for
each. `checkpoint.newest` hashes all of it, with one thread (as before) and with one for each core, in turns. The files
are in the page cache, as after a restart on the same machine: from a disk or a network, the reading is added.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import machine, write
from trainer.cpu_info import cores
from trainer.engine import checkpoint, saving
from trainer.tensors import LazyTensor

ROWS = 1_000_000  # parameters of a tensor


def make(folder: Path, millions: int) -> Path:
    """Save a checkpoint of random numbers."""
    numbers = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
    content = {
        file: {
            f"layers.{i}.{name}": LazyTensor(numbers.shape, numbers.dtype, partial(torch.roll, numbers, i))
            for i in range(millions)
            for name in names
        }
        for file, names in (("model.safetensors", ("weight",)), ("optimizer.safetensors", ("exp_avg", "exp_avg_sq")))
    }
    return saving.save(folder, 1, content, {"step": 1})


def seconds(folder: Path, threads: int) -> dict[str, float]:
    checkpoint.HASHED_AT_ONCE = threads
    checkpoint._hashes.clear()
    wall, cpu = time.monotonic(), time.process_time()
    assert checkpoint.newest(folder) == 1
    return {"seconds": time.monotonic() - wall, "processor_seconds": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=150, help="millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    options = parser.parse_args()
    counts = sorted({1, min(16, cores())})
    with tempfile.TemporaryDirectory() as name:
        path = make(Path(name), options.parameters)
        sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
        seconds(Path(name), 1)  # into the page cache
        rounds = [{n: seconds(Path(name), n) for n in counts[:: 1 - i % 2 * 2]} for i in range(options.rounds)]
    found = {n: statistics.median(of[n]["seconds"] for of in rounds) for n in counts}
    total = sum(sizes.values())
    for n, wall in found.items():
        rate = f"{total / wall / 1e9:.2f} GB/s"
        print(f"{n:2d} at once: {wall:.2f} s for {total / 1e9:.2f} GB in {len(sizes)} files, {rate}")
    ratios = sorted(of[counts[0]]["seconds"] / of[counts[-1]]["seconds"] for of in rounds)
    print(f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    report = {"benchmark": "hashes of a checkpoint at a start", "machine": machine(), "files": sizes}
    result = {"seconds": found, "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    write(options.json, {**report, "result": result, "rounds": rounds})


if __name__ == "__main__":
    main()
