"""Runs contestants in interleaved blocks and turns their answers into ratios.

Contestants take turns (a b c, c b a, …), so that a slow minute of the machine falls on all of them. A ratio is formed
within a round, between neighbours in time; what is reported is the median over rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trainer import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "accelerate", "transformers", "datasets", "tokenizers", "numpy")


class Contestant:
    """A process that works in blocks when asked to; see benchmarks/contestant.py for its side of the pipes."""

    def __init__(self, name: str, module: str, settings: dict[str, Any], python: str = sys.executable) -> None:
        """Starts `python -m module` with `settings` in a file of `settings["folder"]`, which must exist."""
        self.name = name
        folder = Path(settings["folder"])
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        self._log = folder / "stderr.txt"
        threads = str(settings["threads"])
        environment = {name: value for name, value in os.environ.items() if ENVIRONMENT.get(name) != value} | {
            # ours set again what importing trainer has set in this process; the others have not got it
            # One count for OpenMP, MKL and the tokenizers' Rust threads: nobody uses a core that another does not get.
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            **settings.get("environment", {}),
        }
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, str(folder / "settings.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        self.versions: dict[str, str] = self._answer().get("versions", {})  # ready

    def block(self, size: int) -> dict[str, float]:
        """Has it do one block of `size` (its module says in which unit) and waits for the counts."""
        return self.ask(str(size))

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process: at once where it waits for a block, by force where it is in the middle of one."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{self.name} ended early with code {self._process.wait()}:\n{tail}")
        return json.loads(line)


Blocks = dict[str, list[dict[str, float]]]


def run(contestants: Sequence[Contestant], size: int, warmup: int, repeats: int) -> Blocks:
    """Blocks of `size` in turn, `warmup` rounds that are thrown away, then `repeats` rounds; ends the contestants.

    Returns:
        Per contestant's name the counts of its blocks, in the order of the rounds.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` and Ctrl-C end the contestants, too
    try:
        return interleave(contestants, size, warmup, repeats)
    finally:
        for contestant in contestants:
            contestant.close()


def interleave(contestants: Sequence[Contestant], size: int, warmup: int, repeats: int) -> Blocks:
    """`run` for contestants that are asked for something else afterwards."""
    blocks: Blocks = {c.name: [] for c in contestants}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=(warmup + repeats) * len(contestants))
        for turn in range(warmup + repeats):
            for contestant in contestants if turn % 2 == 0 else reversed(contestants):
                progress.update(task, description=f"round {turn + 1 - warmup} of {repeats}: {contestant.name}")
                counts = contestant.block(size)
                progress.advance(task)
                if turn >= warmup:
                    blocks[contestant.name].append(counts)
    return blocks


def rates(blocks: Sequence[dict[str, float]], unit: str) -> list[float]:
    """`unit` per second of each block."""
    return [block[unit] / block["seconds"] for block in blocks]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def compare(blocks: Blocks, unit: str, ours: str) -> dict[str, dict[str, Any]]:
    """Per contestant the rate, its share of padding, and how many times faster `ours` was in the same round."""
    results = {}
    for name, own in blocks.items():
        ratios = [a / b for a, b in zip(rates(blocks[ours], unit), rates(own, unit), strict=True)]
        results[name] = {
            f"{unit}_per_second": spread(rates(own, unit)),
            "padding": 1 - sum(b["tokens"] for b in own) / sum(b["positions"] for b in own),
            "ours_is_times_faster": None if name == ours else spread(ratios),
            "blocks": own,
        }
    return results


def show(title: str, results: dict[str, dict[str, Any]], units: Sequence[str]) -> None:
    """Prints a table: one row per contestant, rates in `units` per second, padding, and the ratio."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for unit in units:
        table.add_column(f"{unit}/s", justify="right")
    table.add_column("padding", justify="right")
    table.add_column("rankzero is × faster (low - high)", justify="right", no_wrap=True)
    for name, result in results.items():
        ratio = result["ours_is_times_faster"]
        table.add_row(
            name,
            *(f"{statistics.median(rates(result['blocks'], unit)):,.0f}" for unit in units),
            f"{result['padding']:.1%}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})" if ratio else "-",
        )
    Console(width=110).print(table)


def protocol(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Adds the options that all comparisons have."""
    parser.add_argument("--warmup", type=int, default=1, help="rounds before the measured ones")
    parser.add_argument("--repeats", "--rounds", type=int, default=repeats, help="measured rounds")
    parser.add_argument("--threads", type=int, default=1, help="of each contestant: torch, and the tokenizer's own")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")


def precision_argument(parser: argparse.ArgumentParser) -> None:
    """Add --precision."""
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16", help="of all contestants; no: fp32")


def label(precision: str) -> str:
    """Return the name of a precision in tables."""
    return "fp32" if precision == "no" else precision


def machine() -> dict[str, Any]:
    """What the numbers were measured on: processor, cores and versions; no names of hosts or folders."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "date": date.today().isoformat(),
        "cpu": model or platform.processor() or platform.machine(),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Writes the report as JSON, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        Console(stderr=True).print(f"written: {path}")
