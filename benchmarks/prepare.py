"""Rows per second of `rankzero prepare` with two processes over one, in alternating repeats.

    python -m benchmarks.prepare [--json benchmarks/results/prepare.json]

The corpus is generated: one JSON Lines file of pairs of about 20 words. Each repeat prepares it with one process and
with two, in alternating order, as complete commands: start, survey, tokenizer and shards. The bytes must be the same.
On a machine that others use, wall times are too long by what the others took. So the processor time of the command and
the share of the processor that others used are reported, too. `--earlier FOLDER` also times the command of another
source tree, such as one of the version before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine, write

WORDS, VOCABULARY = 20, 20_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs=2, default=[1, 2], help="to compare")
    parser.add_argument("--earlier", type=Path, help="another source tree, whose command has no --processes")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def make_corpus(folder: Path, rows: int) -> Path:
    """Write the corpus and its recipe. Return the path of the recipe."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwz", k=draw.randint(2, 10))) for _ in range(VOCABULARY)]
    common = [1 / (i + 10) for i in range(VOCABULARY)]
    pool = [" ".join(draw.choices(words, common, k=draw.randint(WORDS // 2, WORDS * 3 // 2))) for _ in range(20_000)]
    with (folder / "train.jsonl").open("w") as file:
        for number in range(rows):
            pair = {"de": f"{draw.choice(pool)} {number}.", "en": draw.choice(pool)}
            file.write(json.dumps(pair) + "\n")
    recipe = {
        "version": 1,
        "name": "prepare",
        "task": {"kind": "translation"},
        "data": {"root": str(folder), "train": "train.jsonl", "columns": {"src": "de", "trg": "en"}, "lanes": 8},
        "tokenizer": {"train": {"vocab_size": 8000, "sample_rows": 20_000}},
        "model": {"kind": "transformer"},
        "loop": {"epochs": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def busy() -> float:
    """Return the seconds that all processors of the machine have worked."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def measure(recipe: Path, out: Path, tree: Path, options: list[str], rows: int) -> dict[str, Any]:
    """Prepare the corpus once. Return seconds, processor seconds, rows per second and the hash of what was written."""
    command = [sys.executable, "-m", "trainer", "prepare", str(recipe), "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before, others, began = resource.getrusage(resource.RUSAGE_CHILDREN), busy(), time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = busy() - others
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(out)).encode() + path.read_bytes())
    shutil.rmtree(out)
    return {
        "seconds": seconds,
        "processor_seconds": own,
        "rows_per_second": rows / seconds,
        "others_share": max(0.0, worked - own) / seconds / (os.cpu_count() or 1),
        "sha256": digest.hexdigest(),
        "log": [line for line in done.stderr.splitlines() if line.startswith("prepare:")],
    }


def main() -> None:
    options = arguments()
    report: dict[str, Any] = {"benchmark": "rankzero prepare, two numbers of processes", "machine": machine()}
    few, many = options.processes
    candidates = {str(n): (ROOT, ["--processes", str(n)]) for n in (few, many)}
    if options.earlier:
        candidates["earlier"] = (options.earlier, [])
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_corpus(Path(folder), options.rows)
        for number in range(options.repeats):
            order = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
            runs = {name: measure(recipe, Path(folder) / "out", *candidates[name], options.rows) for name in order}
            rounds.append(runs)
            print({name: f"{run['seconds']:.1f} s, others {run['others_share']:.0%}" for name, run in runs.items()})
    same = len({run["sha256"] for runs in rounds for run in runs.values()}) == 1
    ratios = [runs[str(few)]["seconds"] / runs[str(many)]["seconds"] for runs in rounds]
    work = [runs[str(many)]["processor_seconds"] / runs[str(few)]["processor_seconds"] for runs in rounds]
    result = {
        "rows": options.rows,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "processor_time_ratio": statistics.median(work),
        "same_bytes": same,
        "others_share": statistics.mean(run["others_share"] for runs in rounds for run in runs.values()),
    }
    if options.earlier:
        against = [runs["earlier"]["seconds"] / runs[str(few)]["seconds"] for runs in rounds]
        result["earlier_over_one_process"] = statistics.median(against)
    print(json.dumps(result, indent=2))
    write(options.json, {**report, "result": result, "rounds": rounds})
    if not same:
        sys.exit("the numbers of processes wrote different bytes")


if __name__ == "__main__":
    main()
