"""Fine-tuning MiniLM-L6 on IMDB at 256 tokens, in reviews per second, against other loops.

    python -m benchmarks.fine_tuning --data FOLDER [--json benchmarks/results/FILE.json]

Every contestant trains the same pretrained classifier (dropout kept) on the same token ids, in one process with the
same number of threads, each in its own usual way. Blocks of all contestants are interleaved and hold about the same
number of tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Contestant, compare, label, machine, precision_argument, protocol, run, show, write
from trainer.data.tokenization import load_tokenizer
from trainer.engine.corpus import Corpus
from trainer.hub_paths import locate
from trainer.recipe_loading import load_recipe
from trainer.task.registry import make_task

RECIPE = "imdb"
ROWS = 6000  # reviews that the contestants draw from


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="folder that holds imdb/")
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens of a block, without padding")
    precision_argument(parser)
    protocol(parser, repeats=5)
    return parser.parse_args()


def write_rows(overrides: list[str], out: Path) -> None:
    """Every fourth training review, up to ROWS of them, as {"input_ids": ids, "label": class id}."""
    recipe = load_recipe(RECIPE, overrides)
    task = make_task(recipe, load_tokenizer(str(recipe.tokenizer_name)))
    texts = [row for number, (_, row) in enumerate(Corpus(recipe, task).texts("train")) if number % 4 == 0][:ROWS]
    with out.open("w", encoding="utf-8") as lines:
        for example in task.encode(texts):
            lines.write(json.dumps({"input_ids": example["input_ids"], "label": example["label"][0]}) + "\n")


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "fine-tuning MiniLM-L6 on IMDB, 256 tokens", "machine": machine()}
    overrides = [f"data.root={json.dumps(str(options.data / 'imdb'))}", "model.pooling=auto"]
    recipe: Any = load_recipe(RECIPE, overrides)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(overrides, rows)
        common = {
            "threads": options.threads, "rows": str(rows), "model": locate(recipe.model.name)[0], "seed": 1,
            "learning_rate": recipe.optim.lr, "max_length": recipe.data.max_length, "batch": 32,
            "precision": options.precision,
        }  # fmt: skip
        numbers = label(options.precision)
        ours = f"rankzero, {numbers}"
        wanted: list[tuple[str, str, dict[str, Any]]] = [
            (ours, "rankzero_train", {"recipe": RECIPE, "overrides": overrides}),
            (f"transformers' Trainer, grouped by length, {numbers}", "baselines.hf_trainer", {}),
            (f"tutorial, padded to 256, {numbers}", "baselines.padded_classifier", {}),
        ]
        if options.precision != "no":  # as the tutorial has it
            wanted.append(("tutorial, padded to 256, fp32", "baselines.padded_classifier", {"precision": "no"}))
        started = []
        for index, (name, module, settings) in enumerate(wanted):
            place = Path(folder) / str(index)
            place.mkdir()
            started.append(Contestant(name, f"benchmarks.{module}", {**common, **settings, "folder": str(place)}))
        blocks = run(started, options.tokens, options.warmup, options.repeats)
    results = compare(blocks, "rows", ours)
    show("fine-tuning on IMDB, median of interleaved blocks", results, ("rows", "tokens"))
    report |= {key: getattr(options, key) for key in ("tokens", "warmup", "repeats", "threads", "precision")}
    write(options.json, {**report, "results": results})


if __name__ == "__main__":
    main()
