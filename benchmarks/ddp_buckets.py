"""Time of a DDP step by bucket size and with a static graph, and whether the averaged gradients have the same bits.

    python -m benchmarks.ddp_buckets [--ranks 2] [--json benchmarks/results/ddp_buckets.json]

On a machine with two or more GPUs it measures NCCL with one rank for each, otherwise gloo on CPU ranks of one thread. A
step is forward and backward of an encoder of random weights, with the reduction of its gradients, as in
trainer/engine/engines/ddp.py. Settings take turns within a round. A ratio is formed within a round, against torch's
bucket size of 25 MB: of the time, and on CPU ranks also of the processor time, which other programs hardly change.
"different" counts gradients with other bits than those of 25 MB.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

from benchmarks.harness import machine, write

DEFAULT = 25.0  # MB, torch's own
SIZES = (1.0, 5.0, 10.0, DEFAULT, 50.0, 100.0, 1e6)  # MB; the last one is a single bucket
SHAPES = {  # width, layers, words, rows, tokens: the sizes of demo-translation, MiniLM-L6 and BERT-base
    "5.5M": (192, 4, 18_000, 8, 32),
    "22.6M": (384, 6, 30_522, 8, 64),
    "109M": (768, 12, 30_522, 4, 64),
}
WARM_UP = 3  # backwards: with a static graph the buckets are regrouped after the second one

Setting = tuple[float, bool]  # MB of a bucket, static graph


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, help="default: one for each GPU, or 2 on a CPU")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which models")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds")
    parser.add_argument("--steps", type=int, default=4, help="of each setting in a round")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


class Measured:
    """A model on this rank, trained under one setting after another."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        width, layers, words, rows, tokens = shape
        torch.manual_seed(0)
        sizes = {"hidden_size": width, "num_attention_heads": width // 64 or 1, "intermediate_size": 4 * width}
        config = BertConfig(vocab_size=words, num_hidden_layers=layers, **sizes)
        self.model = BertModel(config, add_pooling_layer=False).to(device)
        generator = torch.Generator().manual_seed(dist.get_rank())  # each rank has its own rows
        self.ids = torch.randint(words, (rows, tokens), generator=generator).to(device)
        self.cuda = device.type == "cuda"

    def seconds(self, setting: Setting, steps: int) -> tuple[float, float, list[str]]:
        """Return the median seconds of a step on the slowest rank, its processor time, and digests of the gradients."""
        size, static = setting
        wrapped = DistributedDataParallel(
            self.model,
            device_ids=[self.ids.device] if self.cuda else None,
            bucket_cap_mb=size,
            gradient_as_bucket_view=True,
            static_graph=static,
        )
        times = torch.tensor([self._step(wrapped) for _ in range(WARM_UP + steps)][WARM_UP:], dtype=torch.float64)
        slowest, used = times.to(self.ids.device).unbind(1)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        dist.all_reduce(used)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        digests = [hashlib.sha256(gradient.cpu().numpy().tobytes()).hexdigest() for gradient in gradients]
        del wrapped
        self.model.zero_grad()
        gc.collect()
        return float(slowest.median()), float(used.median()), digests

    def _step(self, wrapped: nn.Module) -> tuple[float, float]:
        """Return seconds and processor seconds of a step on this rank."""
        self.model.zero_grad()
        torch.manual_seed(1)  # the same dropout in each step
        dist.barrier()
        began, used = time.perf_counter(), time.process_time()
        states = wrapped(input_ids=self.ids).last_hidden_state
        (states.square().mean() * 0.5 + states[:, 0].sum() * 1e-3).backward()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began, time.process_time() - used


def measure(name: str, rounds: int, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each setting. All ranks."""
    measured = Measured(SHAPES[name], device)
    settings: list[Setting] = [(size, False) for size in SIZES] + [(DEFAULT, True)]
    found: dict[Setting, list[tuple[float, float]]] = {setting: [] for setting in settings}
    bits: dict[Setting, list[str]] = {}
    for number in range(rounds + 1):
        for setting in settings if number % 2 else reversed(settings):
            *times, bits[setting] = measured.seconds(setting, steps)
            if number:  # the first round warms the allocator
                found[setting].append((times[0], times[1]))
    base, expected, rows = found[DEFAULT, False], bits[DEFAULT, False], []
    for (size, static), times in found.items():
        different = sum(a != b for a, b in zip(bits[size, static], expected, strict=True))
        row = {"model": name, "bucket_mb": size, "static_graph": static}
        for key, values, own in zip(
            ("time", "processor"), zip(*times, strict=True), zip(*base, strict=True), strict=True
        ):
            ratios = sorted(a / b for a, b in zip(values, own, strict=True))
            row[key] = {"seconds": statistics.median(values), "ratio": statistics.median(ratios)}
            row[key] |= {"lowest": ratios[0], "highest": ratios[-1], "all_seconds": values}
        rows.append(row | {"different": different, "gradients": len(expected)})
    return rows


def rank(number: int, ranks: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """Measure all models on one rank. Rank zero puts the rows into `results`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device("cuda", number) if torch.cuda.device_count() >= ranks else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=number, world_size=ranks)
    for name in options.shapes.split(","):
        rows = measure(name, options.rounds, options.steps, device)
        if number == 0:
            results.extend(rows)
            show(rows)
    dist.destroy_process_group()


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"model of {rows[0]['model']}")
    for head in ("bucket", "static graph", "ms", "ratio", "processor ms", "ratio", "different"):
        table.add_column(head, justify="right")
    for row in rows:
        size = "one" if row["bucket_mb"] == SIZES[-1] else f"{row['bucket_mb']:g} MB"
        cells = [size, "yes" * row["static_graph"]]
        for key in ("time", "processor"):
            of = row[key]
            cells += [f"{1e3 * of['seconds']:.0f}", f"{of['ratio']:.2f} ({of['lowest']:.2f} to {of['highest']:.2f})"]
        table.add_row(*cells, f"{row['different']} of {row['gradients']}")
    Console(width=120).print(table)


def main() -> None:
    options = arguments()
    ranks = options.ranks or max(2, torch.cuda.device_count())
    before = machine()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    port = store.port
    del store
    with torch.multiprocessing.Manager() as manager:
        results = manager.list()
        torch.multiprocessing.spawn(rank, (ranks, port, options, results), nprocs=ranks)
        rows = list(results)
    backend = "nccl" if torch.cuda.device_count() >= ranks else "gloo"
    write(
        options.json, {"benchmark": "DDP buckets", "machine": before, "ranks": ranks, "backend": backend, "rows": rows}
    )


if __name__ == "__main__":
    main()
