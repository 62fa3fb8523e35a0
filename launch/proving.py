"""The proving ground of `rankzero verify`: a few rows of the recipe's own corpus, small micro-batches, and its runs."""

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

from launch.comparing import Tensors
from launch.configs import LaunchPlan, choose, find
from launch.ranks import Hook, Ranks
from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.sources import open_split
from trainer.engine import checkpoint
from trainer.errors import DataError
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe, check_recipe
from trainer.rundir import RunDir
from trainer.task.registry import roles_of

LANES = (4, 8)  # at least and at most: so that 1, 2 and 4 ranks are tried, and a step stays small
ROWS, WIDTH = 2, 16  # of a micro-batch, at most: steps of a BERT must not take seconds
EPOCH = 13  # steps, so that 20 of them go over the end of one
RAGGED = 3  # rows more, so that the last micro-batches are not full
LOOKED_AT = 50_000  # rows of the corpus from which ours are drawn
HALF, WHOLE = 10, 20  # steps
KILLED_AFTER = 12
PATIENCE = 1800.0  # seconds for one start, which takes a few on a quiet machine
TRIES = 3  # to kill a run before it has come to its end


class RunFailed(Exception):
    """A run of the proof did not end as it should."""


@dataclass(frozen=True)
class Ground:
    """A folder with the rows and the recipe that all runs of the proof share."""

    folder: Path
    recipe: Path
    rows: int
    cuts: list[str]  # in what it differs from the user's recipe, for people
    lr: float
    hook: Hook | None = None

    def optimizer(self, name: str) -> list[str]:
        """Overrides for the proof with plain SGD, which amplifies nothing, or with AdamW; at a constant rate."""
        words = ["optim.schedule=constant", "optim.warmup_steps=0", f"optim.name={name}"]
        if name == "sgd":
            return [*words, "optim.lr=0.1", "optim.head_lr=null", "optim.momentum=0.9", "optim.weight_decay=0.0"]
        return [*words, f"optim.lr={self.lr}"]

    def start(self, run: Path, env: Mapping[str, str], ranks: int, *words: str, steps: int = WHOLE) -> Ranks:
        """Trains to step `steps`, on from where `run` stands."""
        allowed = ("--allow-change", "loop.max_steps") if run.exists() else ()
        argv = ["train", self.recipe, *words, f"loop.max_steps={steps}", *allowed, "--run", run]
        logs = self.folder / f"{run.name}.logs-{time.monotonic_ns()}"
        return Ranks(argv, logs, ranks, env, hook=self.hook)

    def train(self, run: Path, env: Mapping[str, str], ranks: int, *words: str, steps: int = WHOLE) -> Path:
        """The same, to its end.

        Raises:
            RunFailed: with the last lines that a rank has said.
        """
        ended = self.start(run, env, ranks, *words, steps=steps).wait(PATIENCE)
        if set(ended.codes) != {0}:
            rank = next(i for i, code in enumerate(ended.codes) if code)
            said = [line[:200] for line in ended.err[rank].splitlines() if line.strip()][-5:]
            raise RunFailed(f"rank {rank} of {run.name} ended with {ended.codes[rank]}: {' | '.join(said)}")
        return run

    def train_killed(self, run: Path, env: Mapping[str, str], ranks: int, *words: str) -> Path:
        """Trains on from step 10 and is killed in the middle, by SIGKILL to its last rank; then once more to the end.

        Raises:
            RunFailed: as `train`, or the run was too quick to be killed.
        """
        before = run.with_name(f"{run.name}.before")
        shutil.copytree(run, before)
        for _ in range(TRIES):
            started = self.start(run, env, ranks, *words)
            while started.running and steps_in(run) < KILLED_AFTER:
                time.sleep(0.002)
            started.processes[-1].kill()
            if started.wait(PATIENCE).codes[-1] == -9:
                shutil.rmtree(before)
                return self.train(run, env, ranks, *words)
            shutil.rmtree(run)
            shutil.copytree(before, run)
        raise RunFailed(f"{run.name} came to its end {TRIES} times before it could be killed")


def steps_in(run: Path) -> int:
    """The last step that the ledger of a run holds."""
    try:
        lines = RunDir(run).ledger.read_bytes().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def make_ground(recipe: BaseRecipe, folder: Path, hook: Hook | None = None) -> Ground:
    """Writes rows drawn from the training split, and the recipe of the proof.

    Raises:
        DataError: the corpus has fewer usable rows than are needed.
    """
    data = recipe.data
    lanes = min(max(data.lanes, LANES[0]), LANES[1])
    width = min(data.max_length, WIDTH)
    rows, size = _drawn(recipe, lanes)
    shards = _write_shards(folder / "corpus", rows, lanes, open_split(data, "train"))
    values: dict[str, Any] = recipe.model_dump(mode="json")
    values["data"] |= {
        "root": str(folder / "corpus"), "train": "part-*.jsonl", "validation": None, "test": None,
        "columns": {}, "cleaning": [], "lanes": lanes, "rows_per_batch": size, "max_length": width,
        "tokens_per_batch": None, "workers": 0,
    }  # fmt: skip
    values["loop"] |= {
        "epochs": None, "max_steps": WHOLE, "eval_every": 10**6, "save_every": HALF, "log_every": 1, "keep": 10,
        "early_stopping": {"metric": recipe.loop.early_stopping.metric}, "fuse_lanes": 1, "compile": False,
    }  # fmt: skip
    values["evaluation"]["splits"] = []
    values["export"] |= {"onnx": False, "int8": False}
    values |= {"track": ["ledger"], "name": "verify"}
    made = Recipe.parse(values)
    check_recipe(made)
    (folder / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    cuts = [
        f"{len(rows)} rows of data.train in {shards} files, cleaned",
        f"lanes {data.lanes} -> {lanes}",
        f"micro-batches of {size} rows of at most {width} tokens",
    ]
    lr = min(recipe.optim.lr, 1e-3) if recipe.optim.name == "adamw" else 1e-3
    return Ground(folder, folder / "recipe.yaml", len(rows), cuts, lr, hook)


def _drawn(recipe: BaseRecipe, lanes: int) -> tuple[list[dict[str, str]], int]:
    """Rows drawn evenly from the first ones of the corpus, which may be sorted by label, and how many a micro-batch
    holds: as many as give an epoch of `EPOCH` steps and a ragged end."""
    source, clean, roles = open_split(recipe.data, "train"), cleaner(recipe.data.cleaning), roles_of(recipe)
    assert source is not None, "every recipe has data.train"
    draw, found = random.Random(recipe.seed), []
    for row in source:
        texts = clean_row(row, roles, recipe.data.columns, clean)
        if not isinstance(texts, BadRow):
            found.append(texts)
        if len(found) == LOOKED_AT:
            break
    size = min(ROWS, (len(found) - RAGGED) // (lanes * EPOCH))
    if size < 1:
        least = lanes * EPOCH + RAGGED
        raise DataError(f"verify needs {least} usable rows of data.train; {len(found)} were found: take a longer file")
    chosen = sorted(draw.sample(range(len(found)), size * lanes * EPOCH + RAGGED))
    return [found[i] for i in chosen], size


def _write_shards(folder: Path, rows: Sequence[Mapping[str, str]], lanes: int, source: Any) -> int:
    """JSON lines in as many files as the corpus has, at most one for each lane; returns their number."""
    folder.mkdir(parents=True)
    shards = min(len(source.shards), lanes)
    for shard in range(shards):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[shard::shards])
        (folder / f"part-{shard}.jsonl").write_text("".join(lines), encoding="utf-8")
    return shards


def fp32(config: str, ranks: int, folder: Path) -> LaunchPlan:
    """The plan of a shipped config, its precision changed to fp32, in which engines are comparable."""
    values = yaml.safe_load(find(config).read_text(encoding="utf-8"))
    path = folder / f"{config}-{ranks}.yaml"
    path.write_text(yaml.safe_dump({**values, "mixed_precision": "no"}), encoding="utf-8")
    return choose(str(path), ranks)


def place_of(run: Path, step: int) -> Path:
    """The folder of a checkpoint, there or not."""
    return checkpoint.path_of(RunDir(run).checkpoints, step)


def checkpoint_of(run: Path, step: int) -> tuple[Tensors, Tensors]:
    """Weights and moments."""
    weights, moments = (
        checkpoint.read(RunDir(run).checkpoints, step, f"{n}.safetensors") for n in ("model", "optimizer")
    )
    return {name: t.numpy() for name, t in weights.items()}, {name: t.numpy() for name, t in moments.items()}
