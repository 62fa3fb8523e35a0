"""Seconds, CPU seconds and memory of a save from all ranks, against a save through rank zero.

    python -m benchmarks.checkpoint_speed [--ranks 4] [--json benchmarks/results/checkpoint_speed.json]

A BERT of 299M parameters with AdamW in fp32 (3.6 GB), after one step. Both ways save the same state of one start in
turns, into the same folder. `before` is what rankzero did until every rank wrote its own parts: under a sharded engine
all ranks gather each tensor, and rank zero writes it while the next one is gathered; under DDP rank zero writes a copy
of everything. A save ends when its checkpoint is committed. Its CPU seconds are those of all ranks. Its memory is the
peak of rank zero (VmHWM, reset before) less what was resident.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, write
from benchmarks.sharded_memory import LARGE
from benchmarks.sharded_training import OVERRIDES, RECIPE, ROOT, reset_peak, resident, write_model

ENGINES = ("fsdp2", "zero2", "ddp")
WAYS = ("before", "after")


def through_rank_zero(loop: Any, content: dict[str, dict[str, Any]], folder: Path) -> None:
    """Save as before: all ranks gather every tensor, in the order in which rank zero writes them."""
    from trainer import tensors
    from trainer.engine import saving

    engine, parameters = loop.runtime.engine, dict(loop.runtime.engine.parameters())

    def gather(name: str, tensor: Any) -> Any:
        p, moment = parameters.get(name), None
        if p is None:
            name, _, moment = name.rpartition(".")
            p = parameters[name]
        if engine.spec.package:  # sums up zeros and this rank's range
            import deepspeed

            of_moment = deepspeed.utils.safe_get_full_optimizer_state
            return of_moment(p, moment) if moment else deepspeed.utils.safe_get_full_fp32_param(p)
        return engine.gathered(p, tensor.part().reshape(-1, *p.shape[1:]))

    lazy = {
        file: {
            name: tensors.LazyTensor(tensor.shape, tensor.dtype, partial(gather, name, tensor))
            for name, tensor in found.items()
        }
        for file, found in content.items()
    }
    if loop.runtime.main:
        saving.save(folder, 1, lazy, {})
        return
    for file, found in lazy.items():
        for names in tensors.plan_files(file, found).values():
            for name in tensors.in_order({name: found[name] for name in names}):
                found[name].compute()


def from_all_ranks(loop: Any, content: dict[str, dict[str, Any]], folder: Path) -> None:
    """Save with the writer of the training, and wait for it."""
    from trainer.engine import saving

    loop._writer.save(content, {}, lambda share, ranks: saving.save_share(folder, 1, share, {}, ranks))
    loop._writer.wait()


def as_rank(out: Path, run: Path, model: Path, rounds: int) -> None:
    """Train one step as a rank, and save in both ways in turns."""
    from trainer.api import train
    from trainer.engine import parts
    from trainer.engine.loop import Loop

    results: list[dict[str, Any]] = []

    def save(self: Any, way: str) -> dict[str, float]:
        folder = out / "checkpoints"
        content = self.state.collect()[0]
        sharded = self.runtime.engine.spec.sharded
        parts.PART_BYTES = 64_000_000 if way == "after" else 1 << 60
        work: Callable[..., None] = through_rank_zero if sharded and way == "before" else from_all_ranks
        os.sync()
        self.runtime.wait()
        reset_peak()
        before, began, cpu = resident()["now"], time.monotonic(), time.process_time()
        work(self, content, folder)
        self.runtime.wait()
        seconds, peak = time.monotonic() - began, resident()["peak"] - before
        used = self.runtime.sum([int((time.process_time() - cpu) * 1000)])[0] / 1000
        if self.runtime.main:
            shutil.rmtree(folder)
        return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "memory_mb": round(peak, 1)}

    def measured(self: Any) -> None:
        for number in range(rounds):
            found = {way: save(self, way) for way in (WAYS[::-1] if number % 2 else WAYS)}
            results.append(found)
            if self.runtime.main:
                print(found, flush=True)
        if self.runtime.main:
            (out / "results.json").write_text(json.dumps(results))
        self.runtime.wait()
        sys.stdout.flush()
        os._exit(0)

    Loop._save = measured  # type: ignore[method-assign]
    train(RECIPE, [*OVERRIDES, f"model.name={model}", "loop.max_steps=1", "data.validation=null"], run=run)


def measure(engine: str, ranks: int, folder: Path, model: Path, rounds: int) -> dict[str, Any]:
    """Return the results of one start."""
    from launch.configs import choose
    from launch.local import environment

    config = choose({"ddp": "cpu"}.get(engine, f"cpu_{engine}"), ranks)
    env = environment(config) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "launch.supervise.launcher", "--config_file", str(config.path)]
    words = ["-m", "benchmarks.checkpoint_speed", "--as-rank", str(folder), "--model", str(model)]
    command = [*launcher, "--num_processes", str(ranks), *words, "--rounds", str(rounds)]
    ended = subprocess.run(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode or not (folder / "results.json").exists():
        raise SystemExit(f"{engine} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
    saves = json.loads((folder / "results.json").read_text())
    result: dict[str, Any] = {"saves": saves}
    for key in ("seconds", "cpu_seconds", "memory_mb"):
        result[key] = {way: statistics.median(save[way][key] for save in saves) for way in WAYS}
    for key in ("seconds", "cpu_seconds"):
        ratios = sorted(save["before"][key] / save["after"][key] for save in saves)
        named = {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
        result[f"{key}_ratio"] = {name: round(ratio, 2) for name, ratio in named.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=4, help="saves of each way")
    parser.add_argument("--json", type=Path, help="writes all numbers to this file")
    parser.add_argument("--model", type=Path, help="a folder with the model, to write it only once")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        as_rank(options.as_rank, options.as_rank / "run", options.model, options.rounds)
        return
    report: dict[str, Any] = {"machine": machine(), "ranks": options.ranks, "engines": {}}
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "bert"
        if not model.exists():
            write_model(model, LARGE)
        for engine in options.engines.split(","):
            (Path(name) / engine).mkdir()
            found = report["engines"][engine] = measure(
                engine, options.ranks, Path(name) / engine, model, options.rounds
            )
            print(engine, {key: value for key, value in found.items() if key != "saves"}, flush=True)
            if options.json:
                write(options.json, report)


if __name__ == "__main__":
    main()
