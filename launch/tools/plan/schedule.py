"""The length of a run, its time, and the size of its checkpoints."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from launch.tools.plan.corpus import CorpusSize
from launch.tools.plan.engine_memory import FULL
from launch.tools.plan.gpus import Gpu
from launch.tools.plan.layout import ParamLayout
from trainer.cpu_info import cpuinfo
from trainer.engine.writer import ROOM
from trainer.files import read_json
from trainer.recipe import Recipe
from trainer.rundir import RunDir


@dataclass(frozen=True)
class Training:
    """The length of the run. `ends` is the key of the recipe that ends it."""

    steps: int
    steps_per_epoch: int
    epochs: float
    rows: int
    tokens: int
    padded: int
    ends: str


def training_of(recipe: Recipe, size: CorpusSize) -> Training:
    """Return the length of the run from its rows and `loop`."""
    loop = recipe.loop
    by_epochs = size.steps * loop.epochs if loop.epochs is not None else None
    steps = min(n for n in (by_epochs, loop.max_steps) if n is not None)
    epochs = steps / size.steps
    rows, tokens, padded = (round(n * epochs) for n in (size.rows, size.tokens, size.padded))
    ends = "loop.epochs" if steps == by_epochs else "loop.max_steps"
    return Training(steps, size.steps, epochs, rows, tokens, padded, ends)


@dataclass(frozen=True)
class Throughput:
    """Tokens per second of one rank, source and target, without padding.

    `elsewhere` is the device of the measurement, if it is not the planned one: no hours follow from it.
    """

    tokens: float
    origin: str
    elsewhere: str | None = None


def measured_throughput(run: RunDir, gpu: Gpu | None, on_cpu: bool) -> Throughput | None:
    """Return the median of what an earlier run has logged, divided by its ranks. None without such a run.

    Args:
        run: its directory, which may not exist.
        gpu: the planned GPU, if one is named.
        on_cpu: whether the plan is for this machine's processor.
    """
    manifest = read_json(run.manifest)
    logged = _logged_throughput(run)
    if not manifest or not logged:
        return None
    ranks, devices = int(manifest["ranks"]), manifest.get("devices") or {}
    precision = {"no": "fp32", None: "fp32"}.get(manifest.get("precision"), manifest.get("precision"))
    names = sorted(set(devices.get("gpus") or []))
    device = ", ".join(names) or devices.get("cpu") or "an unknown processor"
    if on_cpu:
        same = _same_processor(devices)
    else:
        same = bool(names) and all(gpu is None or gpu.matches(name) for name in names)
    origin = f"the median of {run.metrics} ({manifest['engine']} x {ranks}, {precision}, on {device})"
    return Throughput(statistics.median(logged) / ranks, origin, None if same else device)


def _logged_throughput(run: RunDir) -> list[float]:
    values = []
    for line in run.metrics.read_bytes().splitlines() if run.metrics.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # an incomplete line of a run in progress
            continue
        if record.get("split") == "train" and record.get("tokens_per_second", 0) > 0:
            values.append(record["tokens_per_second"])
    return values


def _same_processor(devices: Mapping[str, Any]) -> bool:
    here = cpuinfo("model name") or platform.processor()
    return not devices.get("gpus") and devices.get("cpu", here) == here


def hours_of(recipe: Recipe, training: Training, throughput: Throughput | None, ranks: int) -> float | None:
    """Return the hours of training, without evaluation and checkpoints. Ranks wait for the one with most lanes."""
    if throughput is None or throughput.elsewhere is not None:
        return None
    lanes = recipe.data.lanes
    return training.tokens / lanes * math.ceil(lanes / ranks) / throughput.tokens / 3600


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of one checkpoint; of those that are kept, and one more while it is written (`on_disk`).

    `background`: `free` memory of this machine has room for a copy, so that training continues during the write.
    """

    size: int
    kept: int
    on_disk: int
    saves: int
    free: int
    background: bool


def checkpoint_of(recipe: Recipe, layout: ParamLayout, training: Training, lane_memory: int) -> Checkpoint:
    """Return the size of checkpoints: weights, moments and moving average in fp32, and the memory of all lanes."""
    averaging, loop = recipe.optim.averaging, recipe.loop
    size = lane_memory + FULL * (layout.elements + layout.moments * layout.trained_elements)
    size += FULL * layout.elements if averaging.kind == "ema" else 0
    intervals = {n if isinstance(n, int) else training.steps_per_epoch for n in (loop.save_every, loop.eval_every)}
    saves = sum(math.ceil(training.steps / n) for n in intervals)  # the last step is always saved
    protected = averaging.last if averaging.kind == "last" else 1
    kept = (
        saves if loop.keep == "all" else min(saves, max(loop.keep, protected) + int(recipe.data.validation is not None))
    )
    free = psutil.virtual_memory().available
    return Checkpoint(size, kept, size * (kept + 1), saves, free, background=free > ROOM * size)
