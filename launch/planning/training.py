"""How long the run is, how long it takes, and what it writes."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from launch.planning.corpus import Data
from launch.planning.gpus import Gpu
from launch.planning.model import Sketch
from launch.planning.states import FULL
from trainer.cpu_info import cpuinfo
from trainer.engine.writer import ROOM
from trainer.models.configs import TransformerXLConfig
from trainer.recipe import Recipe
from trainer.rundir import RunDir, read_json
from trainer.tasks.language_modeling.recurrent import rows_of


@dataclass(frozen=True)
class Training:
    """Of the whole run; `steps_per_epoch` differs a little from epoch to epoch, as the lanes deal anew."""

    steps: int
    steps_per_epoch: int
    epochs: float
    rows: int
    tokens: int
    padded: int
    ends: str  # which key of the recipe ends it


def training(recipe: Recipe, data: Data) -> Training:
    """What the recipe's `loop` makes of the rows."""
    loop = recipe.loop
    by_epochs = data.steps * loop.epochs if loop.epochs is not None else None
    steps = min(n for n in (by_epochs, loop.max_steps) if n is not None)
    epochs = steps / data.steps
    ends = "loop.epochs" if steps == by_epochs else "loop.max_steps"
    return Training(
        steps,
        data.steps,
        epochs,
        round(data.rows * epochs),
        round(data.tokens * epochs),
        round(data.padded * epochs),
        ends,
    )


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one rank, source and target, without padding.

    Attributes:
        origin: where the speed is known from.
        elsewhere: the device that it was measured on, if it is not the planned one: no hours follow from it.
    """

    tokens: float
    origin: str
    elsewhere: str | None = None


def measured(run: RunDir, gpu: Gpu | None, cpu: bool) -> Speed | None:
    """The median of what an earlier run has logged, divided by its ranks. None without one.

    Args:
        run: its directory, which need not exist.
        gpu: the planned GPU, if one is named.
        cpu: whether the plan is for this machine's processor.
    """
    manifest = read_json(run.manifest)
    if not manifest or not run.metrics.exists():
        return None
    found = []
    for line in run.metrics.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # half a line, of a run that is going on
            continue
        if values.get("split") == "train" and values.get("tokens_per_second", 0) > 0:
            found.append(values["tokens_per_second"])
    if not found:
        return None
    ranks = int(manifest["ranks"])
    precision = {"no": "fp32", None: "fp32"}.get(manifest.get("precision"), manifest.get("precision"))
    devices = manifest.get("devices") or {}
    names = sorted(set(devices.get("gpus") or []))
    device = ", ".join(names) or devices.get("cpu") or "an unknown processor"
    same = _same_processor(devices) if cpu else bool(names) and all(gpu is None or gpu.matches(name) for name in names)
    origin = f"the median of {run.metrics} ({manifest['engine']} x {ranks}, {precision}, on {device})"
    return Speed(statistics.median(found) / ranks, origin, None if same else device)


def _same_processor(devices: Mapping[str, Any]) -> bool:
    here = cpuinfo("model name") or platform.processor()
    return not devices.get("gpus") and devices.get("cpu", here) == here


def hours(recipe: Recipe, whole: Training, speed: Speed, ranks: int) -> float:
    """Of training alone, ranks that must wait for another's last lane included; evaluation and checkpoints are not."""
    lanes = recipe.data.lanes
    return whole.tokens / lanes * math.ceil(lanes / ranks) / speed.tokens / 3600


# -- checkpoints -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of one checkpoint, of those kept at once (one more while it is written), and how it is written.

    `free`: of this machine's memory now. A snapshot is written beside the training where `ROOM` times its size is free.
    """

    size: int
    kept: int
    on_disk: int
    saves: int
    free: int

    @property
    def background(self) -> bool:
        return self.free > ROOM * self.size


def checkpoint(recipe: Recipe, sketch: Sketch, whole: Training) -> Checkpoint:
    """Weights and moments in fp32, whatever the engine, moving average and lanes' memories if there are any."""
    averaging, loop = recipe.optim.averaging, recipe.loop
    size = FULL * (sketch.all_elements + sketch.moments * sketch.trained_elements)
    size += FULL * sketch.all_elements if averaging.kind == "ema" else 0
    if isinstance(recipe.model, TransformerXLConfig):
        size += FULL * recipe.data.lanes * rows_of(recipe.data) * math.prod(recipe.model.past(recipe.model.memory))
    every = loop.save_every if isinstance(loop.save_every, int) else whole.steps_per_epoch
    evaluated = loop.eval_every if isinstance(loop.eval_every, int) else whole.steps_per_epoch
    saves = sum(math.ceil(whole.steps / n) for n in {every, evaluated})  # the last step is always saved
    protected = averaging.last if averaging.kind == "last" else 1
    best = int(recipe.data.validation is not None)
    kept = min(saves, max(loop.keep, protected) + best)
    return Checkpoint(size, kept, size * (kept + 1), saves, psutil.virtual_memory().available)
