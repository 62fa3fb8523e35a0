"""What each fine-tuning technique is worth on little data: 4,000 rows of SST-2, three seeds each.

    python -m benchmarks.ablation --data FOLDER [--json benchmarks/results/FILE.json] [--keep RUNS]

Every run is `rankzero train sst2` on the same rows with one thing changed, the last two the order of the file. The
checkpoint is chosen on 1,000 further training rows; the table is of the 872 development rows, at which no run has
looked before. An ensemble averages the probabilities of three plain runs, so that three of them take nine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import machine, write

PLAIN, ENSEMBLE, SEEDS = "plain", "ensemble of 3 plain runs", 3
COMMON = [
    "data.train=train.tsv", "data.validation=validation.tsv", "data.test=test.tsv", "loop.epochs=3",
    "optim.adversarial.kind=none", "loop.eval_every=epoch", "loop.save_every=epoch",
    "optim.warmup_steps=20", "evaluation.splits=[validation,test]",
]  # fmt: skip
VARIANTS: dict[str, list[str]] = {
    PLAIN: [],
    "layer-wise rates, factor 0.85": ["optim.layer_decay=0.85"],
    "gradual unfreezing, every 5%": ["optim.unfreeze=0.05"],
    "slanted triangular": ["optim.schedule=slanted_triangular", "optim.warmup_steps=0"],
    "FGM, norm 1": ["optim.adversarial={kind: fgm, epsilon: 1.0}"],
    "FGM, norm 0.1": ["optim.adversarial={kind: fgm, epsilon: 0.1}"],
    "EMA, 0.98": ["optim.averaging={kind: ema, decay: 0.98}"],
    "rows sorted by label": ["data.train=sorted.tsv"],
    "rows sorted by label in blocks of a quarter": ["data.train=sorted.tsv", "data.block_rows=250"],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="folder that holds sst2/")
    parser.add_argument("--rows", type=int, default=4000, help="training rows")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one rank and one thread each")
    parser.add_argument("--keep", type=Path, help="folder of the runs: finished ones are not trained again")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def write_rows(sst2: Path, folder: Path, rows: int) -> None:
    """`rows` training and 1,000 validation rows, taken evenly from GLUE's training file, and its dev rows as test.

    The training rows stand in the corpus' order, which is random, and once more sorted by label.
    """
    with gzip.open(sst2 / "train.tsv.gz", "rt", encoding="utf-8") as file:
        header, *lines = file.readlines()
    taken = [lines[i * len(lines) // (rows + 1000)] for i in range(rows + 1000)]
    every = len(taken) // 1000
    held = [line for i, line in enumerate(taken) if i % every == 0][:1000]
    kept = [line for i, line in enumerate(taken) if i % every or i // every >= 1000]
    folder.mkdir(parents=True, exist_ok=True)
    by_label = sorted(kept, key=lambda line: line.rstrip().rpartition("\t")[2])
    for name, part in (("train", kept), ("sorted", by_label), ("validation", held)):
        (folder / f"{name}.tsv").write_text(header + "".join(part), encoding="utf-8")
    (folder / "test.tsv").write_bytes((sst2 / "dev.tsv").read_bytes())


def train(variant: str, seed: int, data: Path, runs: Path) -> dict[str, Any]:
    """Trains one run, unless it has finished before, and returns its test scores."""
    run = runs / f"{re.sub('[^a-z0-9]+', '-', variant.lower())}-{seed}"
    overrides = [f"data.root={json.dumps(str(data))}", *COMMON, *VARIANTS[variant], f"seed={seed}"]
    command = [sys.executable, "-m", "trainer", "train", "sst2", *overrides, "--run", str(run)]
    one = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16"}
    with (runs / f"{run.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, env={**os.environ, **one}, stdout=log, stderr=subprocess.STDOUT, check=True)
    scores = json.loads((run / "evaluation" / "test" / "metrics.json").read_text(encoding="utf-8"))
    return {"seed": seed, "run": run.name, **{name: scores[name] for name in ("accuracy", "loss", "ece")}}


def ensembles(plain: Sequence[Mapping[str, Any]], runs: Path) -> list[dict[str, Any]]:
    """The ensembles of three plain runs each."""
    from trainer.api import ensemble

    found = []
    for start in range(0, len(plain), 3):
        members = [runs / str(run["run"]) for run in plain[start : start + 3]]
        scores = ensemble(members)[1]["ensemble"]
        found.append({"members": [m.name for m in members], **{k: scores[k] for k in ("accuracy", "loss", "ece")}})
    return found


def summary(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of the accuracies, and the mean's distance from the plain runs'."""
    plain = statistics.mean(run["accuracy"] for run in results[PLAIN])
    made = {}
    for name, runs in results.items():
        values = [run["accuracy"] for run in runs]
        mean = statistics.mean(values)
        made[name] = {
            "accuracy": {"mean": mean, "deviation": statistics.stdev(values), "against_plain": mean - plain},
            "loss": statistics.mean(run["loss"] for run in runs),
            "runs": list(runs),
        }
    return made


def show(results: Mapping[str, Mapping[str, Any]], rows: int) -> None:
    table = Table(title=f"SST-2 development rows after fine-tuning on {rows:,} rows", title_justify="left")
    for name in ("", "runs", "accuracy", "deviation", "against plain", "loss"):
        table.add_column(name, justify="right" if name else "left")
    for name, result in results.items():
        a = result["accuracy"]
        change = "-" if name == PLAIN else f"{a['against_plain']:+.2%}"
        table.add_row(
            name, str(len(result["runs"])), f"{a['mean']:.2%}", f"{a['deviation']:.2%}", change, f"{result['loss']:.3f}"
        )
    Console(width=110).print(table)


def main() -> None:
    options = arguments()
    report = {"benchmark": f"fine-tuning techniques on {options.rows} rows of SST-2", "machine": machine()}
    wanted = [(name, seed) for name in VARIANTS for seed in range(1, (9 if name == PLAIN else SEEDS) + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        write_rows(options.data / "sst2", folder / "data", options.rows)
        with ThreadPoolExecutor(options.jobs) as pool:
            scores = list(pool.map(lambda job: train(job[0], job[1], folder / "data", folder), wanted))
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for (name, _), found in zip(wanted, scores, strict=True):
            results[name].append(found)
        results[ENSEMBLE] = ensembles(results[PLAIN], folder)
    made = summary(results)
    show(made, options.rows)
    write(options.json, {**report, "rows": options.rows, "common": COMMON, "variants": VARIANTS, "results": made})


if __name__ == "__main__":
    main()
