"""Everything that needs a GPU, in one run of at most eight minutes: speed alongside Trainer, then the tests marked gpu.

    python benchmarks/gpu.py --json FILE [--minutes 8] [--only NAME] [--skip-tests]
    python benchmarks/gpu.py --json FILE --device cpu    # tiny models: shows that everything runs

It needs no installation of rankzero, no Hub and no corpus. rankzero and transformers' Trainer train models of the same
shape on the same rows, bf16, SDPA, fused AdamW, rows grouped by length; blocks of both are interleaved. `mfu` counts
non-padding tokens only, for both alike, against the dense bf16 peak of the device. `idle` is the share of a profiled
block in which no kernel ran. The file is written after each part, so that a run that is cut off loses nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu_work import SMALL, WORKLOADS, Prepared, Workload, write_corpora  # noqa: E402
from benchmarks.harness import Blocks, Contestant, compare, interleave, machine, show  # noqa: E402
from trainer.engine.utilization import peak_of  # noqa: E402

OURS, THEIRS = "rankzero", "transformers' Trainer"
TEST_SECONDS = 200  # kept for the tests
WORK_SECONDS = 45  # usual for a workload: none is begun with less left
STEPS = 12  # of a block, about


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole run")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds of a workload")
    parser.add_argument("--workers", type=int, default=4, help="loader processes of each contestant")
    parser.add_argument("--only", help="part of the name of the workloads to measure")
    parser.add_argument("--skip-tests", action="store_true")
    return parser.parse_args()


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the tests marked gpu. Returns their exit code, seconds and last lines."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-rA",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "tests/test_gpu.py",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = None, (error.stdout or b"").decode(errors="replace")
    return {"exit_code": code, "seconds": time.monotonic() - began, "output": text[-12_000:].splitlines()}


def measure(work: Workload, corpora: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both contestants on a workload."""
    prepared = Prepared(work, corpora, folder, options.workers)
    common = {"threads": 4 if options.device == "cuda" else 1, "device": options.device, "precision": "bf16"}
    started: list[Contestant] = []
    try:
        for (module, own), name in zip(prepared.settings.items(), (OURS, THEIRS), strict=True):
            place = folder / module
            place.mkdir()
            started.append(Contestant(name, f"benchmarks.{module}", {**common, **own, "folder": str(place)}))
        size = STEPS * work.tokens
        blocks = interleave(started, size, 1, options.repeats)
        idle = {one.name: one.block(-size).get("idle") for one in started} if options.device == "cuda" else {}
    finally:
        for one in started:
            one.close()
    return summary(blocks, idle, prepared.operations, peak())


def peak() -> float | None:
    """Return the dense bf16 peak of the device in operations per second, if it is known."""
    if not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name(), "bf16", tf32=False)


def summary(blocks: Blocks, idle: dict[str, float | None], operations: float, most: float | None) -> dict[str, Any]:
    """Return the results of a workload, with utilization of each contestant."""
    results = compare(blocks, "tokens", OURS)
    for name, result in results.items():
        rate = result["tokens_per_second"]["median"]
        result["mfu"] = rate * operations / most if most else None
        result["idle"] = idle.get(name)
        result["memory"] = max((block.get("memory", 0) for block in result["blocks"]), default=0)
    return results


def main() -> None:
    options = arguments()
    ends = time.monotonic() + 60 * options.minutes
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: --device cpu shows that everything runs")
    report: dict[str, Any] = {"benchmark": "GPU", "machine": machine(), "workloads": {}, "left_out": []}
    if options.device == "cuda":
        report["machine"] |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "peak": peak()}

    def save() -> None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    wanted = [work for work in (WORKLOADS if options.device == "cuda" else SMALL) if (options.only or "") in work.name]
    kept = 0 if options.skip_tests else TEST_SECONDS  # figures come first: the tests are cut off at the end
    with tempfile.TemporaryDirectory() as name:
        corpora = Path(name)
        write_corpora(corpora, 1.0 if options.device == "cuda" else 0.02)
        for number, work in enumerate(wanted):
            if ends - time.monotonic() < WORK_SECONDS + kept and options.device == "cuda":
                report["left_out"].append(work.name)
                continue
            try:
                results = measure(work, corpora, corpora / str(number), options)
            except RuntimeError as error:  # the others are measured
                report["workloads"][work.name] = {"error": str(error)}
                print(f"{work.name}: {error}")
            else:
                report["workloads"][work.name] = results
                show(work.name, results, ("tokens", "rows"))
                print({name: {key: one[key] for key in ("mfu", "idle", "memory")} for name, one in results.items()})
            save()
    if not options.skip_tests:
        report["tests"] = run_tests(ends - time.monotonic())
        print("\n".join(report["tests"]["output"]))
    save()


if __name__ == "__main__":
    main()
