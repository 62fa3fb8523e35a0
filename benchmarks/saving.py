"""What a checkpoint every 100 steps costs a training on Multi30k: the share of its time.

    python -m benchmarks.saving --data FOLDER [--json benchmarks/results/FILE.json]

One run of `rankzero train multi30k --config cpu_bf16`, logged every 10 steps. A save (snapshot, then writing beside the
training) falls into the first windows after it. What these windows take longer than the median of the later ones of
the same hundred steps is the cost of the save, so that a machine that becomes slower for minutes does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, write

EVERY, WINDOW = 100, 10  # steps


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given = os.environ.get("RANKZERO_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="folder that holds multi30k/")
    parser.add_argument("--periods", type=int, default=6, help="times 100 steps, each after a save")
    parser.add_argument("--config", default="cpu_bf16", help="Accelerate config")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    return parser.parse_args()


def train(data: Path, run: Path, periods: int, config: str) -> list[dict[str, Any]]:
    """The run's metrics."""
    steps = EVERY * (periods + 1)
    words = [
        f"data.root={json.dumps(str(data / 'multi30k'))}", f"loop.max_steps={steps}", f"loop.save_every={EVERY}",
        f"loop.eval_every={10**6}", f"loop.log_every={WINDOW}", "evaluation.splits=[]", "optim.r_drop=0",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", "multi30k", *words]
    subprocess.run([*command, "--config", config, "--run", str(run)], check=True)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def costs(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """For each save the share of the following hundred steps' time that it takes."""
    seconds = {line["step"]: 1 / line["tokens_per_second"] for line in lines if line["split"] == "train"}
    found = []
    for save in range(EVERY, max(seconds), EVERY):
        windows = [seconds[save + WINDOW * (i + 1)] for i in range(EVERY // WINDOW)]
        usual = statistics.median(windows[len(windows) // 2 :])
        early = windows[: len(windows) // 2]
        found.append(sum(w - usual for w in early) / (len(windows) * usual))
    return found


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        lines = train(options.data, Path(folder) / "run", options.periods, options.config)
        size = sum(f.stat().st_size for f in sorted(Path(folder).glob("run/checkpoints/step-*"))[-1].iterdir())
    shares = costs(lines)
    result = {"share_of_time": statistics.median(shares), "lowest": min(shares), "highest": max(shares)}
    print(f"a checkpoint of {size / 1e6:.0f} MB every {EVERY} steps takes {statistics.median(shares):.1%} of the time")
    print(f"({min(shares):.1%} to {max(shares):.1%} over {len(shares)} saves)")
    report = {"benchmark": f"cost of saving every {EVERY} steps, Multi30k", "machine": machine(), "bytes": size}
    write(options.json, {**report, "config": options.config, "result": result, "saves": shares, "metrics": list(lines)})


if __name__ == "__main__":
    main()
