"""What it costs to be exact: deterministic settings, ledger, hashes, gates and trackers, as shares of a run's time.

    python -m benchmarks.exactness_cost [--steps 500] [--only demo-sentiment] --json FILE

Two measurements for each demo recipe, in one process with one thread:

1. What each step pays. The same steps are trained with a setting on and off, in turn, in blocks. A cost is the median
   of the ratios within rounds, with a 95% interval of their mean logarithm.
2. What is paid once or with each save. A complete run has a stopwatch around it, of wall and processor time.

Times are processor times of the process and of those that it starts, so that a used machine changes them little.

`projection` is for the recipe imdb, whose published run took 93 minutes with two ranks. It multiplies the costs per
row, per byte and per token of the gates by the numbers of that run: share = cost / time of that run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.exactness_run import FINGERPRINT, GATES, HASHES, SPLIT, STOCK, TRACKER
from benchmarks.harness import ROOT, Blocks, Contestant, machine, precision_argument, protocol, run, write
from trainer.files import read_json

RECIPES = ("demo-sentiment", "demo-translation")
PLAIN = "plain"
# Settings that each step pays for: overrides and environment that switch them on or off.
LEDGER, DETERMINISTIC, MKL = "loop.ledger", "loop.deterministic", "MKL_CBWR"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    LEDGER: {"overrides": ["loop.ledger=true"]},
    DETERMINISTIC: {"overrides": ["loop.deterministic=true"]},
    MKL: {"environment": {"MKL_CBWR": ""}},  # off: the plain run has it on
    TRACKER: {"overrides": ["track=[tensorboard]"]},
}
SWITCHED_OFF = (MKL,)
LIMIT = 0.02
SAMPLE = 500  # rows
# The published run of imdb (benchmarks/results/imdb_cpu_bf16.json), and its files and rows.
IMDB = {
    "seconds": 93.2 * 60, "steps": 1872, "rows": 3 * 23_758, "saves": 3, "corpus_bytes": 16e6,
    "checkpoint_bytes": 3 * 4 * 22.7e6, "test_rows": 12_342, "test_tokens": 12_342 * 203,
}  # fmt: skip
SAME_MODEL, TOKENS_OF_ROW = "demo-sentiment", 31  # the demo with the model of imdb, and the mean tokens of a test row


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of the complete run (default 500)")
    parser.add_argument("--tokens", type=int, default=12_000, help="of a block, without padding")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=[*VARIANTS], help="settings to measure")
    parser.add_argument("--only", choices=RECIPES, help="measure one recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipes")
    precision_argument(parser)
    protocol(parser, repeats=10)
    return parser.parse_args(argv)


def steps_cost(recipe: str, options: argparse.Namespace) -> Blocks:
    """Return the blocks of each variant."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, name in enumerate(dict.fromkeys([PLAIN, *options.variants])):
            variant = VARIANTS[name]
            place = Path(folder) / str(number)
            place.mkdir()
            common = {
                "folder": str(place),
                "threads": options.threads,
                "precision": options.precision,
                "recipe": recipe,
            }
            settings = {**common, **variant, "overrides": [*variant.get("overrides", []), *options.set]}
            started.append(Contestant(name, "benchmarks.exactness_blocks", settings))
        return run(started, options.tokens, options.warmup, options.repeats)


def ratios(blocks: Blocks) -> dict[str, dict[str, Any]]:
    """Return what each setting adds to the time of a step, as a share: in processor time, and in wall time.

    Raises:
        SystemExit: the variants have not trained the same rows.
    """
    found = {}
    for name, own in blocks.items():
        if name == PLAIN:
            continue
        if [block["rows"] for block in own] != [block["rows"] for block in blocks[PLAIN]]:
            raise SystemExit(f"{name} has trained other rows than the plain run")
        pairs = list(zip(own, blocks[PLAIN], strict=True))
        pairs = [(b, a) for a, b in pairs] if name in SWITCHED_OFF else pairs
        cpu = [math.log(_cpu(on) / _cpu(off)) for on, off in pairs]
        wall = [math.log(on["seconds"] / off["seconds"]) for on, off in pairs]
        extra = [(_cpu(on) - _cpu(off)) / off["rows"] for on, off in pairs]
        found[name] = {"cpu": interval(cpu), "wall": interval(wall), "cpu_seconds_per_row": float(np.median(extra))}
    return found


def _cpu(block: Mapping[str, float]) -> float:
    return block["cpu_seconds"] + block["children_seconds"]


def interval(logarithms: Sequence[float]) -> dict[str, float]:
    """Return the median of ratios minus 1, and the 95% interval (Student's t) of their geometric mean minus 1."""
    values = np.asarray(logarithms)
    mean, half = float(values.mean()), 0.0
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    shares = {"median": float(np.median(values)), "mean": mean, "low": mean - half, "high": mean + half}
    return {name: math.expm1(value) for name, value in shares.items()}


def once_cost(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the parts of a complete run, and its total."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        overrides = [f"loop.max_steps={options.steps}", "loop.epochs=null", "track=[tensorboard]", *options.set]
        settings = {
            "folder": folder, "threads": options.threads, "precision": options.precision, "recipe": recipe,
            "overrides": overrides, "out": str(place / "out.json"),
        }  # fmt: skip
        (place / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.exactness_run", str(place / "settings.json")]
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            raise SystemExit(f"the run of {recipe} failed:\n{ended.stderr[-3000:]}")
        found: dict[str, Any] = read_json(place / "out.json") or {}
    total = found["total"]
    for part in found["parts"].values():
        part["share"] = part["cpu_seconds"] / total["cpu_seconds"]
        part["wall_share"] = part["seconds"] / total["seconds"]
    return found


def hash_rate() -> float:
    """Return the bytes per second of SHA-256 here."""
    data, best = bytes(1 << 25), math.inf
    for _ in range(3):
        began = time.process_time()
        hashlib.sha256(data)
        best = min(best, time.process_time() - began)
    return len(data) / best


def projection(steps: Mapping[str, Any], once: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of the time of the published imdb run that the measured costs would have.

    Those of gates are upper bounds: what a gate takes once for a split is multiplied like what it takes for each row.
    """
    rate, parts = hash_rate(), once["parts"]
    gates, split = parts[GATES]["cpu_seconds"], parts[SPLIT]["cpu_seconds"]
    tokens = IMDB["test_tokens"] / (TOKENS_OF_ROW * once["gate_rows"])
    seconds = {
        FINGERPRINT: IMDB["corpus_bytes"] / rate,
        # written, read at the selection, and hashed again as model/ and in the inputs of stages
        HASHES: IMDB["checkpoint_bytes"] * (IMDB["saves"] + 2) / rate,
        GATES: gates - split + split * tokens,
        f"{GATES} with split_rows={SAMPLE}": gates - split + split * tokens * SAMPLE / IMDB["test_rows"],
        STOCK: parts[STOCK]["cpu_seconds"],
        TRACKER: parts[TRACKER]["cpu_seconds"],
    }
    if LEDGER in steps:
        seconds[LEDGER] = max(0.0, steps[LEDGER]["cpu_seconds_per_row"]) * IMDB["rows"]
    shares = {name: value / IMDB["seconds"] for name, value in seconds.items()}
    return {**shares, **{name: steps[name]["cpu"]["mean"] for name in (DETERMINISTIC, MKL) if name in steps}}


def show(recipe: str, result: Mapping[str, Any]) -> None:
    """Print the tables of a recipe."""
    total = result["once"]["total"]
    seconds, cpu_seconds = total["seconds"], total["cpu_seconds"]
    print(f"\n{recipe}: {total['steps']} steps, {seconds:.0f} s, {cpu_seconds:.0f} s of processor time")
    print(f"  {'each step pays':24s}{'processor time (95% interval)':>34s}{'wall time':>28s}")
    for name, cost in result["steps"].items():
        cpu, wall = (f"{c['median']:+.2%} ({c['low']:+.2%} to {c['high']:+.2%})" for c in (cost["cpu"], cost["wall"]))
        print(f"  {name:24s}{cpu:>34s}{wall:>28s}")
    print(f"  {'once, or with each save':24s}{'seconds':>10s}{'processor':>11s}{'share':>9s}")
    for name, part in result["once"]["parts"].items():
        over = "  above 2%" if part["share"] > LIMIT else ""
        print(f"  {name:24s}{part['seconds']:10.2f}{part['cpu_seconds']:11.2f}{part['share']:9.2%}{over}")
    if "projection" in result:
        words = ", ".join(f"{name} {share:.2%}" for name, share in result["projection"].items())
        print(f"  projected for imdb: {words}")


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    report: dict[str, Any] = {"benchmark": "what it costs to be exact", "machine": machine(), "imdb": IMDB}
    report |= {
        key: getattr(options, key) for key in ("steps", "tokens", "warmup", "repeats", "threads", "precision", "set")
    }
    for recipe in (options.only,) if options.only else RECIPES:
        blocks = steps_cost(recipe, options) if options.variants else {}
        result: dict[str, Any] = {"steps": ratios(blocks)}
        write(options.json, {**report, recipe: {**result, "blocks": blocks}})  # what follows takes long, too
        result["once"] = once_cost(recipe, options)
        if recipe == SAME_MODEL and {GATES, STOCK, SPLIT, TRACKER} <= result["once"]["parts"].keys():
            result["projection"] = projection(result["steps"], result["once"])
        show(recipe, result)
        report[recipe] = {**result, "blocks": blocks}
        write(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
