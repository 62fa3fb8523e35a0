"""A long run, to find what grows: memory, file descriptors, threads, processes, files and the time of a step.

    python -m benchmarks.soak [--steps 20000] [--shape transformer|minilm] [--folder runs/soak] --json FILE

One rank with loader processes trains the model of a demo recipe on short rows, with 100 evaluations and saves. A
callback takes samples of the process tree (soak_probe.py). Each measure gets a regression slope with a 95% interval
(trend.py) over the steps after the warm-up.

A measure is flat if the upper end of its interval, times all steps of the run, is within its bound. Exit code 0: all
measures are flat and nothing was left behind. The same command resumes a run that was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine, write
from benchmarks.soak_probe import EVERY, PERIOD, SAMPLES
from benchmarks.trend import trend

PAUSES = 100  # evaluations, and saves
WARM_UP = 0.25  # share of the steps, left out at the begin of each start
LEAST_SAMPLES = 5  # of a start
MEGABYTE = 2**20
SHOWN = 5  # names of what was left behind
CACHES = "torchinductor_"  # torch makes this empty folder at its import; it has the same name in each run
SHAPES = {
    "transformer": (
        "demo-translation",
        ["data.train=train?rows=4000&shards=2", "data.validation=validation?rows=32", "data.tokens_per_batch=64"],
    ),
    "minilm": (
        "demo-sentiment",
        ["data.train=train?rows=2000&shards=2", "data.validation=validation?rows=24", "data.tokens_per_batch=96",
         "data.rows_per_batch=4"],
    ),
}  # fmt: skip
# What a measure may grow by over all steps: a share of its mean, or a number, which is small against 100 saves.
SHARES = {"memory": 0.05, "objects": 0.01, "cpu_seconds": 0.05, "seconds": 0.05}
NUMBERS = dict.fromkeys(("descriptors", "threads", "processes", "shared_memory", "temporary", "run_files"), 2.0)
# Starts the run with /dev/shm of its own, and lists what is left there.
INSIDE = 'mount -t tmpfs tmpfs /dev/shm && SOAK_ROOT_PID=$$ "$@"; code=$?; ls -A /dev/shm > "$SOAK_LEFT"; exit $code'
OUTSIDE = 'SOAK_ROOT_PID=$$ "$@"; exit $?'


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--shape", choices=SHAPES, default="transformer", help="model (default transformer)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default 2)")
    parser.add_argument("--samples", type=int, default=5, help="between two evaluations (default 5)")
    parser.add_argument("--pauses", type=int, default=PAUSES, help=f"evaluations and saves (default {PAUSES})")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="default runs/soak")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--busy", action="store_true", help="judge a step by processor time alone: the machine is used")
    parser.add_argument("--report", action="store_true", help="only report on the samples in the folder")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(argv)
    options.folder = (options.folder / options.shape).resolve()
    return options


def command(options: argparse.Namespace) -> list[str]:
    """Return the command that trains, or resumes."""
    recipe, words = SHAPES[options.shape]
    period = max(1, options.steps // options.pauses)
    words = [
        *words, f"data.workers={options.workers}", "loop.epochs=null", f"loop.max_steps={options.steps}",
        f"loop.eval_every={period}", f"loop.save_every={period}", "loop.callbacks=[benchmarks.soak_probe:Probe]",
        "evaluation.splits=[]", "export.model=false", "export.onnx=false", "export.int8=false", "export.bf16=false",
        *options.set,
    ]  # fmt: skip
    start = "from launch.cli import main; main()"
    place = ["--config", "cpu", "--nproc", "1", "--run", str(options.folder / "run")]
    return [sys.executable, "-c", start, "train", recipe, *words, *place]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run the training to its end. Return what it has left behind, besides the run directory.

    Raises:
        SystemExit: it ended with another code than 0.
    """
    temporary, left = options.folder / "tmp", options.folder / "left"
    temporary.mkdir(parents=True, exist_ok=True)
    left.unlink(missing_ok=True)
    period = max(1, options.steps // options.pauses)
    env = os.environ | {
        "TMPDIR": str(temporary), "SOAK_LEFT": str(left), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", SAMPLES: str(options.folder / "samples.jsonl"),
        EVERY: str(max(1, period // options.samples)), PERIOD: str(period),
    }  # fmt: skip
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    spaces = ["unshare", "--mount", "--propagation", "private"]
    private = _works([*spaces, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"])
    script = [*(spaces if private else []), "sh", "-c", INSIDE if private else OUTSIDE, "sh", *command(options)]
    with (options.folder / "output.txt").open("ab") as log:
        process = subprocess.Popen(script, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if code:
        tail = (options.folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"the run ended with {code}; the same command resumes it:\n{tail}")
    entries = left.read_text(encoding="utf-8").split() if private else None
    files = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if not path.name.startswith(CACHES)]
    return {"shared_memory": entries, "temporary": files, "processes": _alive(process.pid)}


def _works(words: Sequence[str]) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True).returncode == 0
    return False


def _alive(group: int) -> bool:
    """Whether a process of the group is left."""
    time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def read(file: Path) -> list[dict[str, Any]]:
    """Return the samples and events of a run. A step that was trained again after a resume counts the last time."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return list({(line.get("event", ""), line["step"]): line for line in lines}.values())


def judge(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, dict[str, Any]]:
    """Return the trend of each measure over all steps, its bound, and whether it is flat.

    Raises:
        SystemExit: too few samples after the warm-up.
    """
    samples = sorted((line for line in lines if "event" not in line), key=lambda line: line["step"])
    begins: dict[float, Mapping[str, Any]] = {}
    for line in samples:
        begins.setdefault(line["start"], line)
    kept = [
        line
        for line in samples
        if line["step"] >= begins[line["start"]]["step"] + WARM_UP * steps
        and line["processes"] >= begins[line["start"]]["processes"]  # else loader processes have ended with an epoch
    ]
    counts = {start: sum(line["start"] == start for line in kept) for start in begins}
    kept = [line for line in kept if counts[line["start"]] >= LEAST_SAMPLES]
    if len(kept) < LEAST_SAMPLES:
        raise SystemExit(f"{len(samples)} samples, {len(kept)} after the warm-up: too few for a slope")
    groups = [list(begins).index(line["start"]) for line in kept]
    result = {}
    for name in (*SHARES, *NUMBERS):
        values = [line[name] for line in kept]
        found = trend([line["step"] for line in kept], values, groups)
        bound = SHARES[name] * found.mean if name in SHARES else NUMBERS[name]
        growth = {"growth": found.slope * steps, "low": found.low * steps, "high": found.high * steps}
        result[name] = {
            "mean": found.mean, "first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values),
            **growth, "bound": bound, "flat": growth["high"] <= bound, "samples": len(values), "lags": found.lag,
        }  # fmt: skip
    return result


def show(result: Mapping[str, Mapping[str, Any]], steps: int, ignored: Sequence[str]) -> None:
    """Print the table."""
    print(f"{'measure':16s}{'mean':>11s}{'growth over all steps (95% interval)':>42s}{'bound':>10s}")
    for name, found in result.items():
        unit = MEGABYTE if name == "memory" else 0.001 if name in ("seconds", "cpu_seconds") else 1
        label = f"{name}, {'MB' if unit == MEGABYTE else 'ms'}" if unit != 1 else name
        mean, growth, low, high, bound = (found[key] / unit for key in ("mean", "growth", "low", "high", "bound"))
        interval = f"{growth:+.2f} ({low:+.2f} to {high:+.2f})"
        flat = "flat" if found["flat"] else "NOT FLAT"
        note = " (not counted: the machine is used)" if name in ignored else ""
        print(f"{label:16s}{mean:11.2f}{interval:>42s}{bound:10.2f}  {flat}{note}")
    print(f"{steps:,} steps; a measure is flat if the upper end of the interval is within the bound")


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    left = {} if options.report else train(options)
    lines = read(options.folder / "samples.jsonl")
    last = max((line["step"] for line in lines), default=0)
    steps = last if options.report else options.steps
    result = judge(lines, steps)
    ignored = ["seconds"] if options.busy else []
    show(result, steps, ignored)
    counts = {name: sum(line.get("event") == name for line in lines) for name in ("evaluation", "save")}
    starts = len({line["start"] for line in lines})
    print(f"{counts['evaluation']} evaluations, {counts['save']} saves, {starts} start{'s' * (starts > 1)}")
    behind = [name for name, value in left.items() if value]
    growing = [name for name, found in result.items() if not found["flat"] and name not in ignored]
    report = {
        "benchmark": "soak", "machine": about, "shape": options.shape, "steps": steps, "workers": options.workers,
        "set": options.set, "warm_up_steps": int(WARM_UP * steps), "starts": starts, **counts, "ignored": ignored,
        "measures": result, "left": left, "flat": not growing and not behind,
    }  # fmt: skip
    write(options.json, report)
    if growing:
        print(f"not flat: {', '.join(growing)}")
    for name in behind:
        print(
            f"left behind: {name}"
            + (f" {left[name][:SHOWN]}, {len(left[name])} in all" if left[name] is not True else "")
        )
    if growing or behind:
        return 1
    print("flat: all measures")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
