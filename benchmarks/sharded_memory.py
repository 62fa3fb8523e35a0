"""Memory that it takes to give each rank its part of a new model: recorded and filled, or built completely first.

    python -m benchmarks.sharded_memory [--parts 4] [--json benchmarks/results/sharded_memory.json]

A BERT of 299M parameters with random weights. One process stands for one rank: it keeps a part of each parameter. The
peak is the largest resident set, less that of a process that has built a tiny model. Gradients, moments and activations
are not in it: training is not measured here.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, write

MB = 1 << 20
LARGE = {"hidden_size": 1024, "num_hidden_layers": 21, "intermediate_size": 4096, "vocab_size": 32000}
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100}


def build(sizes: dict[str, int]) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    return BertModel(BertConfig(num_attention_heads=16, **sizes))  # type: ignore[arg-type]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def measure(way: str, parts: int) -> dict[str, Any]:
    """Return the figures of one way, in this process."""
    import torch

    from trainer.models.deferred import deferred

    deferred(lambda: build(TINY), torch.device("cpu"))
    base = peak()
    if way == "complete":
        model = build(LARGE)
        kept = {name: p.detach().flatten()[: p.numel() // parts].clone() for name, p in model.named_parameters()}
    else:
        lazy = deferred(lambda: build(LARGE), torch.device("cpu"))
        assert lazy is not None
        model = lazy.model
        kept = {name: torch.zeros(p.numel() // parts) for name, p in model.named_parameters()}
        lazy.fill(lambda name, weight: kept.update({name: kept[name].copy_(weight.flatten()[: len(kept[name])])}))
    parameters = list(model.parameters())
    return {
        "way": way,
        "parameters": sum(p.numel() for p in parameters),
        "part_mb": sum(t.nbytes for t in kept.values()) / MB,
        "largest_tensor_mb": max(p.nbytes for p in parameters) / MB,
        "baseline_mb": base,
        "peak_above_baseline_mb": peak() - base,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=int, default=4, help="ranks")
    parser.add_argument("--way", choices=["recorded", "complete"], help="measure only this one, in this process")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.parts)))
        return
    rows = []
    for way in ("recorded", "complete"):
        command = [sys.executable, "-m", "benchmarks.sharded_memory", "--way", way, "--parts", str(options.parts)]
        rows.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        print(rows[-1], flush=True)
    if options.json:
        write(options.json, {"machine": machine(), "parts": options.parts, "rows": rows})


if __name__ == "__main__":
    main()
