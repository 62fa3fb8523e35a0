"""The training step on Multi30k, in non-padding source + target tokens per second, against other loops.

    python -m benchmarks.training_step --data FOLDER [--joey PATH/bin/python] [--json benchmarks/results/FILE.json]

Every contestant trains a model of the same shape on the same token ids, in one process with the same number of threads,
each in its own usual way. Blocks of all contestants are interleaved and hold about the same number of tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.corpus import Prepared, data_argument, prepare, write_encoded
from benchmarks.harness import Contestant, compare, label, machine, precision_argument, protocol, run, show, write

JOEY = "JoeyNMT 2.3.0, fp32"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data_argument(parser)
    parser.add_argument("--steps", type=int, default=20, help="size of a block, in steps of the recipe (4,096 tokens)")
    precision_argument(parser)
    protocol(parser, repeats=7)
    parser.add_argument("--joey", type=Path, help="python of an environment with JoeyNMT 2.3.0; left out without it")
    return parser.parse_args()


def contestants(options: argparse.Namespace, prepared: Prepared, work: Path) -> list[Contestant]:
    """Start them all; each has a folder of its own below `work`, and the first is ours."""
    data, optim = prepared.recipe.data, prepared.recipe.optim
    write_encoded(prepared, work / "corpus.jsonl")
    common = {
        "shape": prepared.shape(), "corpus": str(work / "corpus.jsonl"), "threads": options.threads, "seed": 1,
    }  # fmt: skip
    numbers = label(options.precision)
    common["precision"] = options.precision
    tutorial = {"learning_rate": 3e-4, "rows_per_batch": 32, "bucketed": True}
    joey = {
        "learning_rate": optim.lr, "betas": optim.betas, "warmup_steps": optim.warmup_steps,
        "label_smoothing": optim.label_smoothing, "tokens_per_batch": data.tokens_per_batch,
        "micro_batches": data.lanes,
    }  # fmt: skip
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        (f"rankzero, {numbers}", "rankzero_train", {"overrides": prepared.overrides}),
        (f"tutorial, nn.Transformer, {numbers}", "baselines.tutorial", tutorial),
        ("the same, unsorted batches", "baselines.tutorial", tutorial | {"bucketed": False}),
        (JOEY, "baselines.joey", joey),
    ]
    if options.precision != "no":  # as the tutorial has it
        wanted.insert(2, ("tutorial, nn.Transformer, fp32", "baselines.tutorial", tutorial | {"precision": "no"}))
    if options.joey is None:
        Console(stderr=True).print("JoeyNMT is left out: --joey gives the python of its environment")
        wanted.pop()
    started: list[Contestant] = []
    for index, (name, module, own) in enumerate(wanted):
        folder = work / str(index)
        folder.mkdir()
        python = str(options.joey) if name == JOEY else sys.executable
        started.append(Contestant(name, f"benchmarks.{module}", {**common, **own, "folder": str(folder)}, python))
    return started


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "training step on Multi30k", "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(options.data.parent, [], Path(folder) / "tokenizer")
        data = prepared.recipe.data
        assert data.tokens_per_batch is not None, "the recipe bounds micro-batches by tokens"
        size = options.steps * data.lanes * data.tokens_per_batch
        started = contestants(options, prepared, Path(folder))
        blocks = run(started, size, options.warmup, options.repeats)
        report["shape"] = prepared.shape()
    results = compare(blocks, "tokens", started[0].name)
    show("training step on Multi30k, median of interleaved blocks", results, ("tokens", "rows"))
    report |= {key: getattr(options, key) for key in ("steps", "warmup", "repeats", "threads", "precision")}
    write(options.json, {**report, "results": results})


if __name__ == "__main__":
    main()
