"""The plan of a recipe: configurations, what fits, and the cheapest that does. Loads no weights and writes nothing."""

from __future__ import annotations

import contextlib
import logging
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from launch.tools.plan.configurations import Configuration, Planner
from launch.tools.plan.corpus import read_corpus
from launch.tools.plan.engines import PRECISIONS
from launch.tools.plan.gpus import Gpu, find_gpu
from launch.tools.plan.schedule import (
    Checkpoint,
    Throughput,
    Training,
    checkpoint_of,
    hours_of,
    measured_throughput,
    training_of,
)
from trainer.cpu_info import EMULATED, bf16_arithmetic
from trainer.errors import UsageError
from trainer.recipe import Recipe
from trainer.recipe_loading import load_recipe
from trainer.rundir import RunDir

GIB = 2**30
MOST_RANKS = 64  # planned for when none are given
CONTEXT = 1 * GIB  # for CUDA, workspaces of its libraries and buffers of NCCL: a rule of thumb
USABLE = 0.95  # of the rest, because an allocator cannot fill its last pages
VOCABULARY = ("vocabulary", "vocabulary_from")
ROWS = ("rows", "rows_from", "sampled_rows")
SAME_PRECISION = {"tf32": "fp32", "no": "fp32"}


@dataclass(frozen=True)
class PlanOptions:
    """The options of `rankzero plan`. `memory` is in GiB, `throughput` in tokens per second and rank."""

    gpu: str | None = None
    memory: float | None = None
    ranks: Sequence[int] = ()
    precisions: Sequence[str] = ()
    throughput: float | None = None
    price: float | None = None
    cpu: bool = False
    run: Path | None = None


@dataclass
class Answer(Configuration):
    """The cheapest configuration that fits, with the command that starts it and the cost of training."""

    command: str = ""
    cost: float | None = None


@dataclass(frozen=True)
class Plan:
    """What `rankzero plan` knows of a run. Sizes are in bytes."""

    recipe: str
    model: dict[str, Any]
    data: dict[str, Any]
    training: Training
    checkpoint: Checkpoint
    device: str
    memory: dict[str, Any] | None  # of a device; tensors may take those bytes that are usable
    throughput: Throughput | None
    answer: Answer | None
    notes: list[str]
    configurations: list[Configuration]

    def document(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        values = asdict(self)
        if self.answer is not None:
            del values["answer"]["fits"]
        return values


def make_plan(recipe: str | Path | Recipe, overrides: Sequence[str] = (), options: PlanOptions | None = None) -> Plan:
    """Return the plan of a recipe, given by name, by path or as an object.

    Raises:
        UsageError: the recipe or an option is wrong, or the configuration of a pretrained model cannot be read.
        DataError: the rows cannot be read, or are fewer than the lanes.
    """
    options = options or PlanOptions()
    _check(options)
    resolved = load_recipe(recipe, overrides)
    gpu = find_gpu(options.gpu) if options.gpu else None
    memory, ranks, precisions = _memory(options, gpu), _ranks(resolved, options.ranks), _precisions(options)
    run = RunDir(options.run or Path("runs") / resolved.name)
    with _without_warnings():
        task, size = read_corpus(resolved, run)
        planner = Planner(task, size.largest, on_cpu=options.cpu)
        configurations = list(planner.configurations(ranks, precisions))
    layout, training = planner.layout, training_of(resolved, size)
    given = Throughput(options.throughput, "as given") if options.throughput is not None else None
    throughput = given or measured_throughput(run, gpu, options.cpu)
    for c in configurations:
        sharing = c.ranks if options.cpu else 1
        c.fits = sharing * c.peak <= memory["usable"] if memory else None
        c.hours = hours_of(resolved, training, throughput, c.ranks)
    best = cheapest(configurations, bf16=gpu.bf16 if gpu else not options.cpu or bf16_arithmetic())
    return Plan(
        recipe=resolved.name,
        model={"parameters": layout.elements, "trained": layout.trained_elements, **_fields(size, *VOCABULARY)},
        data={**_fields(size, *ROWS), "largest_micro_batch": planner.shapes},
        training=training,
        checkpoint=checkpoint_of(resolved, layout, training, planner.lane_memory()),
        device="cpu" if options.cpu else "gpu",
        memory=memory,
        throughput=throughput,
        answer=_answer(recipe, overrides, best, options.price) if best else None,
        notes=_notes(planner, ranks, cpu_bf16=options.cpu and "bf16" in precisions),
        configurations=configurations,
    )


def _fields(source: object, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress warnings: a training logs its own."""
    logger = logging.getLogger("rankzero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


# -- options -----------------------------------------------------------------------------------------------------------


def _check(options: PlanOptions) -> None:
    for name in ("memory", "throughput", "price"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value:g}: must be more than 0")
    if options.gpu is not None and options.cpu:
        raise UsageError("--gpu and --cpu: give one of them")


def _precisions(options: PlanOptions) -> list[str]:
    given = [SAME_PRECISION.get(word, word) for word in options.precisions]
    for word in given:
        if word not in PRECISIONS:
            raise UsageError(f"--precision {word}: not known; allowed: fp32, tf32, bf16, fp16")
    if options.cpu and "fp16" in given:
        raise UsageError("--precision fp16: needs a GPU; a CPU trains in fp32 and bf16")
    return [p for p in PRECISIONS if p in given or not (given or (options.cpu and p == "fp16"))]


def _memory(options: PlanOptions, gpu: Gpu | None) -> dict[str, Any] | None:
    total = int((options.memory or (gpu.memory if gpu else 0)) * GIB)
    if options.cpu:  # is shared by all ranks
        total = total or psutil.virtual_memory().available
        return {"gpu": None, "total": total, "usable": total}
    usable = int((total - CONTEXT) * USABLE)
    return {"gpu": gpu.name if gpu else None, "total": total, "usable": usable} if total else None


def _ranks(recipe: Recipe, given: Sequence[int]) -> list[int]:
    """Return the numbers of ranks to plan for, ascending.

    Raises:
        UsageError: more ranks than lanes, or fewer than one.
    """
    lanes, fuse = recipe.data.lanes, recipe.loop.fuse_lanes
    if not given:
        return [n for n in range(1, min(lanes, MOST_RANKS) + 1) if lanes % n == 0 and (lanes // n) % fuse == 0]
    for n in given:
        if not 1 <= n <= lanes:
            raise UsageError(
                f"--ranks {n}: each rank needs a lane, and data.lanes={lanes}. Give at most {lanes}, or raise "
                "data.lanes, which changes the steps"
            )
        if fuse > 1 and (lanes % n or (lanes // n) % fuse):
            raise UsageError(f"--ranks {n}: loop.fuse_lanes={fuse} does not divide the {lanes / n:g} lanes of a rank")
    return sorted(set(given))


# -- what fits ---------------------------------------------------------------------------------------------------------


def cheapest(configurations: Sequence[Configuration], *, bf16: bool) -> Configuration | None:
    """Return the cheapest configuration that fits and has a shipped config.

    In this order: fewer ranks, nothing offloaded, nothing computed twice, the fastest precision of a device with or
    without bf16 arithmetic, less to send, first in the list.
    """
    fastest = ("bf16", "fp16", "fp32") if bf16 else ("fp16", "fp32", "bf16")
    return min(
        (c for c in configurations if c.fits and c.config),
        key=lambda c: (c.ranks, c.offload, c.activation_checkpointing, fastest.index(c.precision), c.sent),
        default=None,
    )


def _answer(recipe: str | Path | Recipe, overrides: Sequence[str], best: Configuration, price: float | None) -> Answer:
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    words = [word for word in overrides if not word.startswith("loop.activation_checkpointing=")]
    words += ["loop.activation_checkpointing=true"] if best.activation_checkpointing else []
    words += ["--config", *str(best.config).split()]
    words += ["--nproc", str(best.ranks)] if best.ranks > 1 or best.offload else []
    cost = best.hours * price * best.ranks if best.hours is not None and price else None
    return Answer(**vars(best), command=shlex.join(["rankzero", "train", name, *words]), cost=cost)


def _notes(planner: Planner, ranks: Sequence[int], *, cpu_bf16: bool) -> list[str]:
    """Return what the numbers do not show."""
    lanes, notes = planner.recipe.data.lanes, []
    if cpu_bf16 and not bf16_arithmetic():
        notes.append(f"{EMULATED}: take fp32")
    if uneven := [n for n in ranks if lanes % n]:
        listed = ", ".join(map(str, uneven))
        notes.append(f"{listed} ranks do not divide data.lanes={lanes}: some are idle at the end of each step")
    if planner.fake.unused:
        notes.append(f"the loss does not depend on {', '.join(planner.fake.unused)}: they are not trained")
    if not planner.can_checkpoint:
        notes.append("this model cannot checkpoint activations")
    if planner.recipe.loop.compile:
        notes.append("loop.compile: memory is that of the eager model; a compiled model mostly has fewer activations")
    return notes
