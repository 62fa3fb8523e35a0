"""The data path alone: rows and tokens per second streamed, tokenized and batched, without workers and with two.

    python -m benchmarks.data_path --data FOLDER [--json benchmarks/results/FILE.json]

Everybody reads the same files with the same tokenizer; a block is one pass over the corpus. Passes are interleaved.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus import Prepared, data_argument, prepare
from benchmarks.harness import Contestant, compare, machine, protocol, run, show, write

OURS = "rankzero"
ROWS_PER_BATCH = 64  # of the others: about as many as rankzero's micro-batches of 1,024 padded tokens hold
TRAIN_ONLY = ["data.train=train-*.jsonl", "data.validation=null", "data.test=null"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    data_argument(parser)
    parser.add_argument("--passes", type=int, default=1, help="size of a block, in passes over the corpus")
    protocol(parser, repeats=5)
    parser.add_argument("--shards", type=int, default=1, help="files that the corpus is cut into")
    return parser.parse_args()


def cut(file: Path, shards: int, folder: Path) -> list[str]:
    """The corpus as `shards` files, rows dealt in turn; with one it is a copy."""
    folder.mkdir()
    files = [folder / f"train-{i:05d}-of-{shards:05d}.jsonl" for i in range(shards)]
    if shards == 1:
        shutil.copyfile(file, files[0])
        return [str(files[0])]
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    for index, part in enumerate(files):
        part.write_text("".join(line + "\n" for line in lines[index::shards]), encoding="utf-8")
    return [str(part) for part in files]


def contestants(
    options: argparse.Namespace, files: list[str], prepared: Prepared, work: Path, workers: int
) -> list[Contestant]:
    """Starts them all with `workers` loader processes; each has a folder of its own below `work`."""
    common: dict[str, Any] = {
        "files": files, "tokenizer": str(prepared.tokenizer), "max_length": prepared.recipe.data.max_length,
        "threads": options.threads, "workers": workers, "rows_per_batch": ROWS_PER_BATCH,
    }  # fmt: skip
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        (OURS, "rankzero_data", {"overrides": prepared.overrides}),
        ("datasets stream, map row by row", "baselines.stream", {"batched": False}),
        ("datasets stream, map(batched=True)", "baselines.stream", {"batched": True}),
    ]
    started: list[Contestant] = []
    for index, (name, module, own) in enumerate(wanted):
        folder = work / f"{index}-workers-{workers}"
        folder.mkdir()
        started.append(Contestant(name, f"benchmarks.{module}", {**common, **own, "folder": str(folder)}))
    return started


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "data path on Multi30k", "machine": machine(), "results": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = cut(options.data, options.shards, work / "corpus")
        prepared = prepare(work / "corpus", TRAIN_ONLY, work / "tokenizer")
        for workers in (0, 2):
            running = contestants(options, files, prepared, work, workers)
            results = compare(run(running, options.passes, options.warmup, options.repeats), "tokens", OURS)
            show(f"data path on Multi30k, {workers} workers, {options.shards} file(s)", results, ("rows", "tokens"))
            report["results"][f"workers_{workers}"] = results
    report |= {key: getattr(options, key) for key in ("passes", "warmup", "repeats", "threads", "shards")}
    write(options.json, report)


if __name__ == "__main__":
    main()
