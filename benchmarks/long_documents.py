"""Time and memory of a training step against the length of the text: BERT, Longformer, BigBird, Reformer.

    python -m benchmarks.long_documents [--json benchmarks/results/long_documents.json]

Forward and backward of one text in a small model with random weights, each family with the windows, blocks and chunks
that it has by default. Blocks of all contestants are interleaved at each length; ratios are to BERT in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Blocks, Contestant, interleave, machine, protocol, spread, write

LENGTHS = (256, 512, 1024, 2048, 4096)
SIZES = {"hidden_size": 128, "num_attention_heads": 2}
STACK = {**SIZES, "num_hidden_layers": 2, "intermediate_size": 512}
BERT = "BERT"
MODELS: dict[str, dict[str, Any]] = {
    BERT: {"architecture": "bert", "config": STACK},
    "BERT, SDPA": {"architecture": "bert", "config": STACK, "attention": "sdpa"},
    "Longformer": {"architecture": "longformer", "config": STACK},
    "BigBird": {"architecture": "big_bird", "config": STACK},
    "Reformer": {
        "architecture": "reformer",
        "config": {**SIZES, "attn_layers": ["local", "lsh"], "feed_forward_size": 512, "attention_head_size": 64},
    },
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the text")
    protocol(parser, repeats=5)
    return parser.parse_args()


def measure(lengths: Sequence[int], options: argparse.Namespace) -> dict[int, Blocks]:
    """Blocks of all contestants at each length."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        try:
            for index, (name, model) in enumerate(MODELS.items()):
                place = Path(folder) / str(index)
                place.mkdir()
                settings = {"threads": options.threads, "folder": str(place), "model": model}
                started.append(Contestant(name, "benchmarks.long_step", settings))
            return {length: interleave(started, length, options.warmup, options.repeats) for length in lengths}
        finally:
            for contestant in started:
                contestant.close()


def summary(blocks: dict[int, Blocks]) -> dict[str, dict[str, Any]]:
    """For each contestant and length: CPU seconds, megabytes, width, and both as shares of BERT's in the same round."""
    results: dict[str, dict[str, Any]] = {}
    for length, of_all in blocks.items():
        for name, own in of_all.items():
            facts: dict[str, Any] = {"positions": own[0]["positions"]}
            for unit in ("cpu_seconds", "megabytes"):
                values, berts = ([block[unit] for block in found] for found in (own, of_all[BERT]))
                facts[unit] = spread(values)
                facts[f"{unit}_of_bert"] = spread([a / b for a, b in zip(values, berts, strict=True)])
            results.setdefault(name, {})[str(length)] = {**facts, "blocks": own}
    return results


def growth(of_length: dict[str, Any], unit: str) -> float:
    """How many times more the longest text takes than one of half its length."""
    half, whole = sorted(of_length, key=int)[-2:]
    return of_length[whole][unit]["median"] / of_length[half][unit]["median"]


def show(results: dict[str, dict[str, Any]]) -> None:
    lengths = list(results[BERT])
    for unit, scale, what in (("cpu_seconds", 1000, "CPU milliseconds"), ("megabytes", 1, "megabytes")):
        table = Table(title=f"{what} of a step of one text (share of BERT's)", title_justify="left")
        table.add_column("tokens", no_wrap=True)
        for length in lengths:
            table.add_column(length, justify="right")
        if len(lengths) > 1:
            table.add_column("last doubling", justify="right")
        for name, of_length in results.items():
            cells = []
            for length in lengths:
                facts = of_length[length]
                share = facts[f"{unit}_of_bert"]["median"]
                cells.append(f"{facts[unit]['median'] * scale:,.0f}" + ("" if name == BERT else f" ({share:.2f})"))
            last = [f"x {growth(of_length, unit):.1f}"] if len(lengths) > 1 else []
            table.add_row(name, *cells, *last)
        Console(width=110).print(table)


def main() -> None:
    options = arguments()
    lengths = sorted(options.lengths)
    report: dict[str, Any] = {"benchmark": "time and memory of a step against the length", "machine": machine()}
    results = summary(measure(lengths, options))
    show(results)
    report |= {"lengths": lengths, "warmup": options.warmup, "repeats": options.repeats, "threads": options.threads}
    write(options.json, {**report, "models": MODELS, "results": results})


if __name__ == "__main__":
    main()
