"""A rank runs out of memory: the run resumes from its newest checkpoint in smaller parts, with the same steps."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import hooks
import numpy as np
import pytest
import torch
from processes import Ended, read_lines, status, train
from safetensors.numpy import load_file
from slow import slow_except

from trainer.errors import ran_out_of_memory

SGD = ("optim.name=sgd", "optim.lr=0.3", "optim.momentum=0.9", "model.dropout=0.0")
QUIET = ("loop.eval_every=100", "loop.save_every=3", "evaluation.splits=[]", "data.validation=null", "loop.max_steps=8")


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints/step-00000008/model.safetensors")


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("NCCL error: unhandled cuda error, out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_are_recognized(error: Exception, expected: bool) -> None:
    assert ran_out_of_memory(error) == expected


def test_torchs_own_error_on_a_cpu_is_recognized() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(found.value)


def short(recipe: Path, run: Path, rows: int, *, world: int, engine: str, guilty: int = 0, step: int = 5) -> Ended:
    hook = functools.partial(hooks.short_of_memory, guilty, step, rows)
    return train(recipe, run, *SGD, *QUIET, world=world, engine=engine, hook=hook)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("engine", "guilty"),
    slow_except(
        [("single", 0), ("ddp", 0), ("ddp", 1), ("zero1", 1), ("zero2", 0), ("zero3", 1), ("fsdp2", 1)], ("fsdp2", 1)
    ),
)
def test_the_run_resumes_with_split_micro_batches_and_the_same_steps(
    recipe: Path, tmp_path: Path, engine: str, guilty: int
) -> None:
    world = 1 if engine == "single" else 2
    train(recipe, tmp_path / "whole", *SGD, *QUIET).check()
    rows = 4  # micro-batches of the tiny corpus hold 4 to 12 rows
    run = tmp_path / "run"
    ended = short(recipe, run, rows, world=world, engine=engine, guilty=guilty)
    assert ended.codes[guilty] == 75, ended.text
    told = status(run)
    assert (told["state"], told["exit_code"]) == ("preempted", 75)
    assert f"rank {guilty} ran out of memory at step 5 in a micro-batch of " in told["error"]
    assert "with each one in 2 parts" in told["error"]
    parts = 2
    while parts < 16:
        ended = short(recipe, run, rows, world=world, engine=engine, guilty=guilty)
        assert f"micro-batches go in {parts} parts" in ended.err[0]
        assert "resumed from step 3" in ended.err[0]
        if ended.codes == [0] * world:
            break
        parts *= 2
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["micro_batch_splits"] == parts > 1
    assert not (run / "failed-rank.json").exists()
    assert largest_difference(weights(run), weights(tmp_path / "whole")) <= 1e-6
    assert read_lines(run / "ledger.jsonl") == read_lines(tmp_path / "whole" / "ledger.jsonl")


@pytest.mark.ranks
@pytest.mark.slow
def test_a_single_row_that_does_not_fit_ends_the_run(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes = [short(recipe, run, 1, world=1, engine="single").code for _ in range(6)]
    assert codes[0] == 75
    assert codes[-1] == 1, "parts of one row cannot be split"
    assert "which cannot be split: lower data.max_length" in status(run)["error"]
    assert codes.index(1) == len([code for code in codes if code == 75])


@pytest.mark.ranks
@pytest.mark.parametrize("config", slow_except(["debug", "cpu"], "debug"))
def test_rankzero_train_restarts_after_out_of_memory(recipe: Path, tmp_path: Path, config: str) -> None:
    """Through the launcher and in one process; the ranks are short of memory because of a `sitecustomize`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'launch.rank' in sys.orig_argv or 'debug' in sys.orig_argv:\n"
        "    import hooks\n"
        "    hooks.short_of_memory(hooks.rank(), 5, 7)\n"
    )
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", str(recipe), *SGD, *QUIET]
    run = tmp_path / "run"
    path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    ended = subprocess.run(
        [*command, "--config", config, "--run", str(run)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["micro_batch_splits"] >= 2
    assert len(manifest["starts"]) >= 1
    assert "ran out of memory at step" in ended.stderr


@pytest.mark.ranks
def test_fresh_forgets_the_parts(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short(recipe, run, 7, world=1, engine="single")
    train(recipe, run, *SGD, *QUIET, "--fresh").check()
    assert json.loads((run / "manifest.json").read_text())["micro_batch_splits"] == 1
