"""Compare the memory of a rank in `rankzero plan --cpu` with that of real runs of every engine on this machine.

    python benchmarks/plan_memory.py [--bf16] [--engines single,ddp,…] [--out benchmarks/results/plan_memory.json]
    python benchmarks/plan_memory.py --plan-only    # compare earlier measurements with the current plan

Each run is one epoch of a small corpus on two ranks, so that the plan has seen all micro-batches. A rank records its
largest resident set (VmHWM, reset before the model is built) up to the last step, less what was resident before the
model, and ends there. The tokenizer and libraries are not counted, also those that are imported late (LATE). What
libraries allocate afterwards is counted. malloc returns freed blocks of 64 KiB and more at once
(MALLOC_MMAP_THRESHOLD_), as a GPU's allocator reuses them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
LATE = ("torch._dynamo", "torch._inductor.config", "torch.distributed.fsdp", "deepspeed", "transformers.models.auto")
CONFIGS = {"single": "debug", "ddp": "cpu"}  # others: cpu_ENGINE
RECIPE = "demo-translation"
STEPS = 4  # of the epoch
OVERRIDES = (
    *("data.train=train?rows=700&shards=2", "data.validation=null", "data.test=null", "evaluation.splits=[]"),
    *("data.lanes=4", "data.tokens_per_batch=1024", "data.pad_multiple=8", "loop.epochs=1", "loop.save_every=1000"),
    *("loop.eval_every=1000", "loop.log_every=1", "tokenizer.train.vocab_size=2000"),
    *("model.d_model=512", "model.encoder_layers=4", "model.decoder_layers=4", "model.heads=8"),
    "model.feed_forward=2048",
)


def resident() -> tuple[int, int]:
    """Return the bytes of this process's memory: now, and the most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
    return found["VmRSS"], found["VmHWM"]


def reset_peak() -> None:
    """Set the recorded peak to what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def as_rank(out: Path, run: Path) -> None:
    """Train as a rank, and write the memory of each step."""
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from trainer.api import train
    from trainer.engine import session
    from trainer.engine.step import Stepper

    seen: dict[str, Any] = {"steps": []}
    build, call = session.build_model, Stepper.__call__

    def built(*arguments: Any, **more: Any) -> Any:
        reset_peak()
        seen["before"] = resident()[0]
        return build(*arguments, **more)

    def stepped(self: Stepper, *arguments: Any) -> Any:
        result = call(self, *arguments)
        now, most = resident()
        seen["steps"].append({"now": now - seen["before"], "most": most - seen["before"]})
        if len(seen["steps"]) == STEPS:
            (out / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))
            os._exit(0)
        return result

    session.build_model, Stepper.__call__ = built, stepped  # type: ignore[method-assign]
    train(RECIPE, OVERRIDES, run=run)


def measure(engine: str, precision: str, folder: Path) -> dict[str, Any]:
    """Return the largest memory of any rank of a real run."""
    from launch.configs import choose
    from launch.local import environment

    config = choose(CONFIGS.get(engine, f"cpu_{engine}"), None)
    env = environment(config) | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if precision == "bf16":
        env["ACCELERATE_MIXED_PRECISION"] = "bf16"
    script = [__file__, "--as-rank", str(folder), "--run", str(folder / "run")]
    launcher = [sys.executable, "-m", "launch.supervise.launcher", "--config_file", str(config.path)]
    start = [*launcher, "--num_processes", "2", *script] if engine != "single" else [sys.executable, *script]
    if precision == "bf16" and engine != "single":
        start[5:5] = ["--mixed_precision", "bf16"]
    found = subprocess.run(start, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if found.returncode or not ranks:
        raise SystemExit(f"{engine} {precision} ended with {found.returncode}:\n{found.stderr[-3000:]}")
    return {
        "measured": max(rank["steps"][-1]["most"] for rank in ranks),
        "idle": max(rank["steps"][-1]["now"] for rank in ranks),
        "steps": len(ranks[0]["steps"]),
        "ranks": len(ranks),
    }


def compare(rows: list[dict[str, Any]]) -> None:
    """Add the planned memory to the measured rows, and print both."""
    from launch.tools.plan.planner import PlanOptions, make_plan

    plan = make_plan(RECIPE, OVERRIDES, PlanOptions(cpu=True, ranks=(1, 2)))
    assert plan.training["steps"] == STEPS, plan.training
    planned = {(c.engine, c.precision): c for c in plan.configurations if not c.activation_checkpointing}
    for row in rows:
        c = planned[row["engine"], row["precision"]]
        row |= {"planned": c.step, "parts": c.step_parts, "difference": round(c.step / row["measured"] - 1, 4)}
        print(
            f"{c.engine:8s} {c.precision}  planned {c.step / 1e6:8.1f} MB  "
            f"measured {row['measured'] / 1e6:8.1f} MB  {row['difference']:+.1%}"
        )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    values = {"recipe": RECIPE, "overrides": list(OVERRIDES), "rows": rows}
    path.write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--bf16", action="store_true", help="bf16 instead of fp32")
    parser.add_argument("--plan-only", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan_memory.json")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        as_rank(arguments.as_rank, arguments.run)
        return
    sys.path.insert(0, str(ROOT))
    precision, out = "bf16" if arguments.bf16 else "fp32", arguments.out
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for engine in () if arguments.plan_only else arguments.engines.split(","):
        with tempfile.TemporaryDirectory() as name:
            row = {"engine": engine, "precision": precision, **measure(engine, precision, Path(name))}
        rows = [r for r in rows if (r["engine"], r["precision"]) != (engine, precision)] + [row]
        write(out, rows)
        print(f"{engine} {precision}: measured {row['measured'] / 1e6:.1f} MB", flush=True)
    compare(rows)
    write(out, rows)


if __name__ == "__main__":
    main()
