"""The training step on Multi30k, in non-padding source + target tokens per second, against other loops.

    python -m benchmarks.training_step --data FOLDER [--joey PATH/bin/python] [--json benchmarks/results/FILE.json]

Every contestant trains a model of the same shape on the same token ids, in one process with the same number of threads,
each in its own usual way. Blocks of all contestants are interleaved and hold about the same number of tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.corpus import train_tokenizer, write_encoded
from benchmarks.harness import Contestant, compare, interleave, machine, show, write

OURS = "rankzero"
SHAPE = {
    "d_model": 256, "heads": 4, "encoder_layers": 3, "decoder_layers": 3, "feed_forward": 512, "dropout": 0.2,
    "vocab_size": 6000, "max_length": 100,
}  # fmt: skip
STEP_TOKENS = 4096


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="holds multi30k/train.jsonl")
    parser.add_argument("--steps", type=int, default=20, help="size of a block, in steps of 4,096 tokens")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before the measured ones")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds")
    parser.add_argument("--threads", type=int, default=1, help="of each contestant")
    parser.add_argument("--joey", type=Path, help="python of an environment with JoeyNMT 2.3.0; left out without it")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def contestants(options: argparse.Namespace, corpus: Path, work: Path) -> list[Contestant]:
    """Starts them all; each has a folder of its own below `work`."""
    common: dict[str, Any] = {"shape": SHAPE, "corpus": str(corpus), "threads": options.threads, "seed": 1}
    tutorial = {"learning_rate": 3e-4, "rows_per_batch": 32}
    wanted = [
        ("tutorial, nn.Transformer, fp32", "tutorial", tutorial | {"bucketed": True}),
        ("the same, unsorted batches", "tutorial", tutorial | {"bucketed": False}),
    ]
    joey = {
        "learning_rate": 1.5e-3, "betas": [0.9, 0.98], "warmup_steps": 800, "label_smoothing": 0.1,
        "tokens_per_batch": 1024, "micro_batches": 2,
    }  # fmt: skip
    if options.joey is not None:
        wanted.append(("JoeyNMT 2.3.0, fp32", "joey", joey))
    else:
        Console(stderr=True).print("JoeyNMT is left out: --joey gives the python of its environment")
    started = []
    for index, (name, module, own) in enumerate(wanted):
        folder = work / f"{index}-{module}"
        folder.mkdir()
        python = {"python": str(options.joey)} if module == "joey" else {}
        started.append(
            Contestant(name, f"benchmarks.baselines.{module}", {**common, **own, "folder": str(folder)}, **python)
        )
    return started


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "training step on Multi30k", "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        file = options.data / "multi30k" / "train.jsonl"
        tokenizer = train_tokenizer(file, SHAPE["vocab_size"])
        write_encoded(file, tokenizer, SHAPE["max_length"], work / "corpus.jsonl")
        running = contestants(options, work / "corpus.jsonl", work)
        try:
            blocks = interleave(running, options.steps * STEP_TOKENS, options.warmup, options.repeats)
        finally:
            for contestant in running:
                contestant.close()
    results = compare(blocks, "tokens", OURS)
    show("training step on Multi30k, median of interleaved blocks", results, ("tokens", "rows"))
    report |= {key: getattr(options, key) for key in ("steps", "warmup", "repeats", "threads")}
    write(options.json, report | {"shape": SHAPE, "results": results})


if __name__ == "__main__":
    main()
