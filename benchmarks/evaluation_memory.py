"""Peak memory of the ranks of an evaluation against the number of rows, and the seconds that it takes.

    python -m benchmarks.evaluation_memory [--earlier FOLDER] [--json benchmarks/results/evaluation_memory.json]

A tiny classifier is trained for two steps and evaluates generated reviews of about 2,000 characters on two ranks, with
growing numbers of rows. The memory is the largest resident set of each rank during the evaluation, above what it had
before. `--earlier FOLDER` also measures another source tree, such as one of the version before. The files of both
must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHARACTERS = 2000


def recipe_of(folder: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "memory",
        "task": {"kind": "classification", "labels": ["bad", "good"]},
        "data": {"root": str(folder), "train": "train.jsonl", "test": "test.jsonl", "lanes": 2, "max_length": 16},
        "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 300}},
        "model": {"kind": "encoder", "d_model": 16, "layers": 1, "heads": 2, "feed_forward": 16},
        "loop": {"max_steps": 2},
        "evaluation": {"bootstrap": 10, "splits": []},
        "export": {"model": False, "onnx": False, "int8": False},
    }


def write_rows(path: Path, rows: int) -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghilmnorstu", k=draw.randint(2, 9))) for _ in range(2000)]
    with path.open("w") as file:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=CHARACTERS // 6))
            file.write(json.dumps({"text": f"{number} {text}", "label": draw.choice(["bad", "good"])}) + "\n")


def as_rank(out: Path, run: Path) -> None:
    """Evaluate as a rank, and write the memory of the evaluation."""
    from trainer.api import evaluate
    from trainer.engine.trained_run import TrainedRun

    original = TrainedRun.evaluate

    def measured(self: Any, runtime: Any, split: str) -> Any:
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _megabytes("VmRSS"), time.monotonic()
        scores = original(self, runtime, split)
        found = {"peak": _megabytes("VmHWM") - before, "before": before, "seconds": time.monotonic() - began}
        (out / f"rank-{runtime.rank}.json").write_text(json.dumps(found))
        return scores

    TrainedRun.evaluate = measured  # type: ignore[method-assign]
    evaluate(run)


def _megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def start(tree: Path, words: list[str], ranks: int) -> None:
    env = os.environ | {
        "PYTHONPATH": f"{tree}:{ROOT}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # fmt: skip
    config = ["--config_file", str(ROOT / "accelerate_configs/cpu.yaml"), "--num_processes", str(ranks)]
    launcher = ["-m", "launch.supervise.launcher", *config] if ranks > 1 else []
    found = subprocess.run([sys.executable, *launcher, *words], env=env, cwd=tree, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{words} ended with {found.returncode}:\n{found.stderr[-4000:]}")


def measure(tree: Path, run: Path, folder: Path, ranks: int) -> dict[str, Any]:
    """Return the memory of each rank in MB above that before the evaluation, its seconds, and a hash of its files."""
    out = folder / "out"
    out.mkdir()
    start(tree, [str(Path(__file__).resolve()), "--as-rank", str(out), "--run", str(run)], ranks)
    found = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
    digest = hashlib.sha256()
    for name in ("metrics.json", "predictions.jsonl"):
        digest.update((run / "evaluation/test" / name).read_bytes())
    shutil.rmtree(out)
    shutil.rmtree(run / "evaluation")
    return {
        "rank_zero": round(found[0]["peak"], 1),
        "others": round(max((one["peak"] for one in found[1:]), default=0.0), 1),
        "before": round(found[0]["before"], 1),
        "seconds": round(found[0]["seconds"], 1),
        "sha256": digest.hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--earlier", type=Path, help="another source tree")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        as_rank(options.as_rank, options.run)
        return
    from benchmarks.harness import machine, write

    report: dict[str, Any] = {"benchmark": "memory of an evaluation by rows", "machine": machine()}
    trees = {"now": ROOT} | ({"earlier": options.earlier} if options.earlier else {})
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(json.dumps(recipe_of(folder)))
        for file in ("train", "test"):
            write_rows(folder / f"{file}.jsonl", 200)
        words = ["-m", "trainer", "train", str(folder / "recipe.yaml"), "--run", str(folder / "run")]
        start(ROOT, words, 1)
        for rows in options.rows:
            write_rows(folder / "test.jsonl", rows)
            for tree, path in trees.items():
                found = {"rows": rows, "tree": tree, **measure(path, folder / "run", folder, options.ranks)}
                results.append(found)
                print(found, flush=True)
    same = all(len({r["sha256"] for r in results if r["rows"] == rows}) == 1 for rows in options.rows)
    write(
        options.json, {**report, "ranks": options.ranks, "characters": CHARACTERS, "same_files": same, "runs": results}
    )
    if not same:
        sys.exit("the two source trees wrote different files")


if __name__ == "__main__":
    main()
