"""The runs of `rankzero verify`: a few rows of the recipe's own corpus in small micro-batches."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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
FUSED = 2  # lanes in one forward where the recipe fuses some: as many as each of 4 ranks has of 8 lanes
ROWS, WIDTH = 2, 16  # of a micro-batch, at most: steps of a BERT must not take seconds
EPOCH = 13  # steps, so that 20 of them go beyond the end of one
INCOMPLETE_ROWS = 3  # more, so that the last micro-batches are not full
MOST_ROWS = 50_000  # of the corpus, from which ours are drawn
RESUME_STEP, LAST_STEP = 10, 20
KILLED_AFTER = 12
TIMEOUT = 1800.0  # seconds for one start, which takes a few on a quiet machine
ENDLESS = 100_000  # steps of a run that is killed
SGD_OVERRIDES = ("optim.lr=0.1", "optim.head_lr=null", "optim.momentum=0.9", "optim.weight_decay=0.0")


class RunFailed(Exception):
    """A run did not end as it should."""


@dataclass(frozen=True)
class Testbed:
    """The rows and the recipe that all runs share. `changes` describes the differences to the user's recipe."""

    folder: Path
    recipe: Path
    rows: int
    changes: str
    lr: float
    hook: Hook | None = None

    def reference(self, name: str) -> Path:
        """The run of one process with an optimizer ("sgd" or "adamw"), or of one step ("first")."""
        return self.folder / f"reference-{name}"

    def start(self, run: Path, env: Mapping[str, str], ranks: int, optimizer: str, steps: int) -> Ranks:
        """Start training up to step `steps`, from the newest checkpoint of `run`."""
        words = ["optim.schedule=constant", "optim.warmup_steps=0", f"optim.name={optimizer}"]
        words += SGD_OVERRIDES if optimizer == "sgd" else [f"optim.lr={self.lr}"]
        words += [f"loop.max_steps={steps}", f"loop.save_every={RESUME_STEP if steps <= LAST_STEP else steps}"]
        words += ["--allow-change", "loop.max_steps"] if run.exists() else []
        logs = self.folder / f"{run.name}.logs-{time.monotonic_ns()}"
        return Ranks(["train", self.recipe, *words, "--run", run], logs, ranks, env, hook=self.hook)

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

    def kill(self, run: Path, copy: Path, env: Mapping[str, str], ranks: int) -> Path:
        """Resume half of a finished run in a copy, without an end, and send SIGKILL to the last rank."""
        started = self.start(self.copy_half(run, copy), env, ranks, "sgd", ENDLESS)
        while started.running and RunDir(copy).ledger.read_bytes().count(b"\n") < KILLED_AFTER:  # a line for each step
            time.sleep(0.002)
        started.processes[-1].kill()
        if started.wait(TIMEOUT).codes[-1] != -signal.SIGKILL:
            raise RunFailed(f"{copy.name} ended before it was killed")
        return copy

    def copy_half(self, run: Path, copy: Path) -> Path:
        """Copy a finished run as it was after the step from which others resume."""
        if not checkpoint_folder(run, LAST_STEP).exists():
            raise RunFailed(f"{run.name} has not finished, so there is nothing to compare with: see the lines above")
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(checkpoint_folder(run, LAST_STEP).name))
        RunDir(copy).cut_after(RunDir(copy).ledger, RESUME_STEP)
        return copy


def make_testbed(recipe: BaseRecipe, folder: Path, hook: Hook | None = None) -> Testbed:
    """Write rows drawn from the training split, and the recipe of all runs."""
    data = recipe.data
    fused = recipe.loop.fuse_lanes not in (1, "auto")
    lanes = LANES[1] if fused else min(max(data.lanes, LANES[0]), LANES[1])
    width = min(data.max_length, WIDTH)
    rows, size, shards = write_rows(recipe, folder / "corpus", lanes)
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values["data"] |= {
        "root": str(folder / "corpus"), "train": "part-*.jsonl", "validation": None, "test": None,
        "columns": {}, "cleaning": [], "lanes": lanes, "rows_per_batch": size, "max_length": width,
        "tokens_per_batch": None, "workers": 0, "mix": [], "mix_temperature": None,
    }  # fmt: skip
    values["loop"] |= {
        "epochs": None, "max_steps": LAST_STEP, "eval_every": 10**6, "save_every": RESUME_STEP, "log_every": 1,
        "ledger": True, "keep": 10, "early_stopping": {"metric": recipe.loop.early_stopping.metric},
        "fuse_lanes": FUSED if fused else 1,
        "compile": "layers" if recipe.loop.compile == "layers" else False,  # a graph of the whole model takes minutes
    }  # fmt: skip
    if fused:  # dropout depends on which lanes share a forward, and that on the number of ranks
        values["model"] = _without_dropout(values["model"])
    values["optim"]["options"] = {}  # of the recipe's optimizer; the runs choose SGD or AdamW
    values["evaluation"]["splits"] = []
    values["export"] |= {"model": False, "onnx": False, "int8": False}
    values |= {"track": [], "name": "verify"}
    small = Recipe.parse(values)
    check_recipe(small)
    (folder / "recipe.yaml").write_text(small.to_yaml(), encoding="utf-8")
    changes = (
        f"{rows} rows of data.train in {shards} files, cleaned; lanes {data.lanes} -> {lanes}; "
        f"micro-batches of {size} rows of at most {width} tokens"
        + f"; {FUSED} lanes in a forward, without dropout"
        * fused
    )
    lr = min(recipe.optim.lr, 1e-3) if recipe.optim.name == "adamw" else 1e-3
    return Testbed(folder, folder / "recipe.yaml", rows, changes, lr, hook)


def _without_dropout(model: dict[str, Any]) -> dict[str, Any]:
    """Return the section with all probabilities of dropout at 0, those of an adapter included."""
    values = {key: _without_dropout(value) if key == "adapter" and value else value for key, value in model.items()}
    return values | {key: 0.0 for key in model if key.endswith("dropout")}


def write_rows(recipe: BaseRecipe, folder: Path, lanes: int) -> tuple[int, int, int]:
    """Draw rows evenly from the first ones of the corpus, which may be sorted by label, and write them as JSON lines.

    Returns:
        The number of rows, of rows in a micro-batch, so that an epoch has `EPOCH` steps and an incomplete one, and of
        files: as many as the corpus has, at most one for each lane.
    """
    clean, roles = cleaner(recipe.data.cleaning), roles_of(recipe)
    source = open_split(recipe.data, "train", roles)
    assert source is not None, "every recipe has data.train"
    cleaned = (
        clean_row(row, roles, source.section(row, recipe.data).columns, clean) for row in islice(source, MOST_ROWS)
    )
    usable = [texts for texts in cleaned if not isinstance(texts, BadRow)]
    size = min(ROWS, (len(usable) - INCOMPLETE_ROWS) // (lanes * EPOCH))
    if size < 1:
        least = lanes * EPOCH + INCOMPLETE_ROWS
        raise DataError(f"verify needs {least} usable rows of data.train, which has {len(usable)}: use a longer file")
    count, shards = size * lanes * EPOCH + INCOMPLETE_ROWS, min(len(source.shards), lanes)
    chosen = sorted(random.Random(recipe.seed).sample(range(len(usable)), count))
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = (json.dumps(usable[i], ensure_ascii=False) + "\n" for i in chosen[shard::shards])
        (folder / f"part-{shard}.jsonl").write_text("".join(lines), encoding="utf-8")
    return count, size, shards


def checkpoint_folder(run: Path, step: int) -> Path:
    return checkpoint.path_of(RunDir(run).checkpoints, step)


def read_checkpoint(run: Path, step: int) -> tuple[Tensors, Tensors]:
    """Return weights and moments."""
    weights, moments = (
        {name: t.numpy() for name, t in checkpoint.read(RunDir(run).checkpoints, step, f"{file}.safetensors").items()}
        for file in ("model", "optimizer")
    )
    return weights, moments
