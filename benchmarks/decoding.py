"""Translating Multi30k's test sources, in target tokens per second, against transformers' `generate`.

    python -m benchmarks.decoding RUN [--json benchmarks/results/FILE.json]

RUN is a finished, exported run of `multi30k`. `generate` decodes with a Marian model of random weights and the same
width, layers, heads, feed-forward width and vocabulary, with its cache. How long a translation becomes would decide
the comparison, so everybody writes as many tokens for a row as its reference has: <eos> is impossible before and
certain then. All get the same batches, sorted by length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Blocks, Contestant, interleave, machine, protocol, rates, spread, write
from trainer.engine.corpus import Corpus
from trainer.engine.trained_run import TrainedRun
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

CONTESTANTS = {
    "transformers generate, fp32": ("baselines.generate", {}),
    "rankzero, PyTorch fp32": ("rankzero_decode", {"backend": "torch"}),
    "rankzero, ONNX fp32": ("rankzero_decode", {"backend": "onnx"}),
    "rankzero, ONNX int8": ("rankzero_decode", {"backend": "int8"}),
}
GENERATE, TORCH, *_ = CONTESTANTS
KINDS = [(1, 1), (1, 5), (32, 1), (32, 5)]  # rows of a batch, beam


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run of multi30k with both artifacts")
    parser.add_argument("--rows", type=int, default=64, help="sentences of a block; of blocks one by one an eighth")
    protocol(parser, repeats=7)
    return parser.parse_args()


def write_rows(finished: TrainedRun, most: int, out: Path) -> None:
    """Test rows as {"src": ids with <eos>, "new": tokens of the reference with <eos>}, in the order of the corpus."""
    texts = [row for _, row in islice(Corpus(finished.recipe, finished.task).texts("test"), most)]
    with out.open("w", encoding="utf-8") as lines:
        for example in finished.task.encode(texts):
            lines.write(json.dumps({"src": example["src"], "new": len(example["trg"]) + 1}) + "\n")


def settings_of(finished: TrainedRun, options: argparse.Namespace, rows: Path) -> dict[str, Any]:
    task: Any = finished.task
    return {
        "threads": options.threads, "run": str(options.run.resolve()), "rows": str(rows),
        "kinds": [{"batch": b, "beam": k, "rows": options.rows if b > 1 else options.rows // 8} for b, k in KINDS],
        "model": finished.recipe.model.model_dump(mode="json"), "vocab_size": len(task.tokenizer),
        "max_length": finished.recipe.data.max_length,
        "bos_id": task.bos_id, "eos_id": task.eos_id, "pad_id": task.pad_id,
    }  # fmt: skip


def ratios(blocks: Blocks) -> dict[str, Any]:
    """Target tokens per second, and how many times those of `generate` and of our PyTorch in the same round."""
    speeds = {name: rates(own, "tokens") for name, own in blocks.items()}
    return {
        name: {
            "tokens_per_second": spread(own),
            "times_generate": spread([a / b for a, b in zip(own, speeds[GENERATE], strict=True)]),
            "times_torch": spread([a / b for a, b in zip(own, speeds[TORCH], strict=True)]),
            "blocks": blocks[name],
        }
        for name, own in speeds.items()
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    table = Table(title="target tokens per second, median of interleaved blocks", title_justify="left")
    for name in ("", "", "tokens/s", "× generate (low - high)", "× our PyTorch (low - high)"):
        table.add_column(name, no_wrap=True)
    for title, found in results.items():
        for name, one in found.items():
            times = (one["times_generate"], one["times_torch"])
            texts = (f"{t['median']:.2f} ({t['low']:.2f} - {t['high']:.2f})" for t in times)
            table.add_row(title, name, f"{one['tokens_per_second']['median']:,.0f}", *texts)
            title = ""
        table.add_section()
    Console(width=120).print(table)


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "decoding Multi30k, target tokens of given lengths", "machine": machine()}
    finished = TrainedRun.open(RunDir(options.run), Recipe)
    results, started = {}, []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(finished, options.rows, rows)
        common = settings_of(finished, options, rows)
        try:
            for index, (name, (module, own)) in enumerate(CONTESTANTS.items()):
                place = Path(folder) / str(index)
                place.mkdir()
                started.append(Contestant(name, f"benchmarks.{module}", {**common, **own, "folder": str(place)}))
            for index, (batch, beam) in enumerate(KINDS):
                blocks = interleave(started, index, options.warmup, options.repeats)
                results[f"batch {batch}, {'greedy' if beam == 1 else f'beam {beam}'}"] = ratios(blocks)
        finally:
            for contestant in started:
                contestant.close()
    show(results)
    report |= {key: getattr(options, key) for key in ("rows", "warmup", "repeats", "threads")}
    shape = {"model": common["model"], "vocab_size": common["vocab_size"]}
    write(options.json, {**report, **shape, "results": results})


if __name__ == "__main__":
    main()
