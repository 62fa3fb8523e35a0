"""The runs of `rankzero verify`: a few rows of the recipe's own corpus in small micro-batches."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.configs import LaunchPlan, choose, find
from launch.supervise.forked_ranks import Hook, Ranks
from launch.tools.verify.compare import Tensors
from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.sources import open_split
from trainer.engine import checkpoint
from trainer.errors import DataError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe, check_recipe
from trainer.rundir import RunDir
from trainer.task.registry import roles_of

LANES = (4, 8)  # at least and at most: so that 1, 2 and 4 ranks run, and a step stays small
ROWS, WIDTH = 2, 16  # of a micro-batch, at most: steps of a BERT must not take seconds
EPOCH = 13  # steps, so that 20 of them go beyond the end of one
INCOMPLETE_ROWS = 3  # more, so that the last micro-batches are not full
MOST_ROWS = 50_000  # of the corpus, from which ours are drawn
RESUME_STEP, LAST_STEP = 10, 20
KILLED_AFTER = 12
TIMEOUT = 1800.0  # seconds for one start, which takes a few on a quiet machine
TRIES = 3  # to kill a run before it has finished
OPTIMIZERS = {  # SGD amplifies nothing; AdamW gets the recipe's learning rate
    "sgd": ["optim.lr=0.1", "optim.head_lr=null", "optim.momentum=0.9", "optim.weight_decay=0.0"],
    "adamw": [],
}


class RunFailed(Exception):
    """A run did not end as it should."""


@dataclass(frozen=True)
class Testbed:
    """The rows and the recipe that all runs share. `changes` lists the differences to the user's recipe."""

    folder: Path
    recipe: Path
    rows: int
    changes: list[str]
    lr: float
    hook: Hook | None = None

    def start(self, run: Path, env: Mapping[str, str], ranks: int, optimizer: str, steps: int = LAST_STEP) -> Ranks:
        """Start training up to step `steps`, from the newest checkpoint of `run`."""
        words = ["optim.schedule=constant", "optim.warmup_steps=0", f"optim.name={optimizer}"]
        words += OPTIMIZERS[optimizer] or [f"optim.lr={self.lr}"]
        words += ["--allow-change", "loop.max_steps"] if run.exists() else []
        argv = ["train", self.recipe, *words, f"loop.max_steps={steps}", "--run", run]
        return Ranks(argv, self.folder / f"{run.name}.logs-{time.monotonic_ns()}", ranks, env, hook=self.hook)

    def train(self, run: Path, env: Mapping[str, str], ranks: int, optimizer: str, steps: int = LAST_STEP) -> None:
        """Train up to step `steps` and wait for it.

        Raises:
            RunFailed: with the last lines of the rank that failed.
        """
        ended = self.start(run, env, ranks, optimizer, steps).wait(TIMEOUT)
        if set(ended.codes) != {0}:
            rank = next(i for i, code in enumerate(ended.codes) if code)
            lines = [line[:200] for line in ended.err[rank].splitlines() if line.strip()][-5:]
            raise RunFailed(f"rank {rank} of {run.name} ended with {ended.codes[rank]}: {' | '.join(lines)}")

    def kill(self, run: Path, env: Mapping[str, str], ranks: int, optimizer: str) -> None:
        """Continue training and send SIGKILL to the last rank in the middle.

        Raises:
            RunFailed: the run always finished before it could be killed.
        """
        before = run.with_name(f"{run.name}.before")
        shutil.copytree(run, before)
        for _ in range(TRIES):
            started = self.start(run, env, ranks, optimizer)
            while started.running and last_logged_step(run) < KILLED_AFTER:
                time.sleep(0.002)
            started.processes[-1].kill()
            if started.wait(TIMEOUT).codes[-1] == -9:
                shutil.rmtree(before)
                return
            shutil.rmtree(run)
            shutil.copytree(before, run)
        raise RunFailed(f"{run.name} finished {TRIES} times before it could be killed")


def last_logged_step(run: Path) -> int:
    """Return the last step in the ledger of a run, which another process may be writing."""
    try:
        lines = RunDir(run).ledger.read_bytes().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def make_testbed(recipe: BaseRecipe, folder: Path, hook: Hook | None = None) -> Testbed:
    """Write rows drawn from the training split, and the recipe of all runs.

    Raises:
        DataError: the corpus has fewer usable rows than are needed.
    """
    data = recipe.data
    lanes = min(max(data.lanes, LANES[0]), LANES[1])
    width = min(data.max_length, WIDTH)
    rows, size = draw_rows(recipe, lanes)
    shards = _write_shards(folder / "corpus", rows, lanes, open_split(data, "train"))
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values["data"] |= {
        "root": str(folder / "corpus"), "train": "part-*.jsonl", "validation": None, "test": None,
        "columns": {}, "cleaning": [], "lanes": lanes, "rows_per_batch": size, "max_length": width,
        "tokens_per_batch": None, "workers": 0,
    }  # fmt: skip
    values["loop"] |= {
        "epochs": None, "max_steps": LAST_STEP, "eval_every": 10**6, "save_every": RESUME_STEP, "log_every": 1,
        "keep": 10, "early_stopping": {"metric": recipe.loop.early_stopping.metric}, "fuse_lanes": 1, "compile": False,
    }  # fmt: skip
    values["evaluation"]["splits"] = []
    values["export"] |= {"model": False, "onnx": False, "int8": False}
    values |= {"track": ["ledger"], "name": "verify"}
    small = Recipe.parse(values)
    check_recipe(small)
    (folder / "recipe.yaml").write_text(small.to_yaml(), encoding="utf-8")
    changes = [
        f"{len(rows)} rows of data.train in {shards} files, cleaned",
        f"lanes {data.lanes} -> {lanes}",
        f"micro-batches of {size} rows of at most {width} tokens",
    ]
    lr = min(recipe.optim.lr, 1e-3) if recipe.optim.name == "adamw" else 1e-3
    return Testbed(folder, folder / "recipe.yaml", len(rows), changes, lr, hook)


def draw_rows(recipe: BaseRecipe, lanes: int) -> tuple[list[dict[str, str]], int]:
    """Draw rows evenly from the first ones of the corpus, which may be sorted by label.

    Returns:
        The rows, and how many a micro-batch holds so that an epoch has `EPOCH` steps and an incomplete one.
    """
    clean, roles = cleaner(recipe.data.cleaning), roles_of(recipe)
    source = open_split(recipe.data, "train", roles)
    assert source is not None, "every recipe has data.train"
    draw, usable = random.Random(recipe.seed), []
    for row in source:
        texts = clean_row(row, roles, recipe.data.columns, clean)
        if not isinstance(texts, BadRow):
            usable.append(texts)
        if len(usable) == MOST_ROWS:
            break
    size = min(ROWS, (len(usable) - INCOMPLETE_ROWS) // (lanes * EPOCH))
    if size < 1:
        least = lanes * EPOCH + INCOMPLETE_ROWS
        raise DataError(f"verify needs {least} usable rows of data.train, which has {len(usable)}: use a longer file")
    chosen = sorted(draw.sample(range(len(usable)), size * lanes * EPOCH + INCOMPLETE_ROWS))
    return [usable[i] for i in chosen], size


def _write_shards(folder: Path, rows: Sequence[Mapping[str, str]], lanes: int, source: Any) -> int:
    """Write JSON lines in as many files as the corpus has, at most one for each lane; return their number."""
    folder.mkdir(parents=True)
    shards = min(len(source.shards), lanes)
    for shard in range(shards):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[shard::shards])
        (folder / f"part-{shard}.jsonl").write_text("".join(lines), encoding="utf-8")
    return shards


def fp32_plan(config: str, ranks: int, folder: Path) -> LaunchPlan:
    """Return the plan of a shipped config with its precision changed to fp32, in which engines can be compared."""
    values = yaml.safe_load(find(config).read_text(encoding="utf-8"))
    path = folder / f"{config}-{ranks}.yaml"
    path.write_text(yaml.safe_dump({**values, "mixed_precision": "no"}), encoding="utf-8")
    return choose(str(path), ranks)


def checkpoint_folder(run: Path, step: int) -> Path:
    return checkpoint.path_of(RunDir(run).checkpoints, step)


def read_checkpoint(run: Path, step: int) -> tuple[Tensors, Tensors]:
    """Return weights and moments."""
    weights, moments = (
        checkpoint.read(RunDir(run).checkpoints, step, f"{n}.safetensors") for n in ("model", "optimizer")
    )
    return {name: t.numpy() for name, t in weights.items()}, {name: t.numpy() for name, t in moments.items()}
