"""`rankzero plan`: what a run will need, on any machine, before anything is started. It advises and refuses nothing.

No weights are loaded and nothing is written. What each number means, and how far it is from what was measured:
docs/plan.md. Heavy imports are in functions, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli import Overrides, RecipeArgument, RunOption
from trainer.errors import UsageError

if TYPE_CHECKING:
    from launch.planning.advice import Limit
    from launch.planning.configurations import Configuration
    from launch.planning.corpus import Data
    from launch.planning.model import Sketch
    from launch.planning.rehearsal import Shapes
    from launch.planning.states import Precision
    from launch.planning.training import Checkpoint, Speed, Training
    from trainer.recipe import Recipe

MOST_RANKS = 64  # planned for when none are named


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for besides the recipe."""

    gpu: str | None = None
    memory: float | None = None  # GiB
    ranks: Sequence[int] = ()
    precisions: Sequence[str] = ()
    throughput: float | None = None  # tokens per second per rank
    price: float | None = None  # of a rank for an hour
    cpu: bool = False
    run: Path | None = None


@dataclass(frozen=True)
class Plan:
    """All that is known of a run before it starts."""

    recipe: Recipe
    sketch: Sketch
    data: Data
    training: Training
    checkpoint: Checkpoint
    shapes: Shapes
    configurations: list[Configuration]
    limit: Limit | None
    best: Configuration | None
    command: str | None
    speed: Speed | None
    hours: dict[int, float]
    price: float | None
    cpu: bool
    notes: list[str]


def plan_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="such as A100, H100, L4, RTX4090")] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", help="of a GPU (with --cpu of the machine)")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option("--ranks", metavar="N,N,…", help="default: those that divide data.lanes")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="P,P,…", help="fp32 (tf32 is the same), bf16, fp16; all")
    ] = None,
    throughput: Annotated[
        float | None,
        typer.Option("--throughput", metavar="TOKENS", help="per second and rank; default: as runs/NAME measured"),
    ] = None,
    price: Annotated[float | None, typer.Option("--price", metavar="P", help="of a rank for an hour")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="plan for the cpu_* configs instead of GPUs")] = False,
    run: RunOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """What a run will need: memory per rank under every engine, steps, time, disk. Loads no weights."""
    wishes = Wishes(gpu, memory, _integers(ranks), _words(precision), throughput, price, cpu, run)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, would look for a GPU and say so
    with contextlib.redirect_stdout(sys.stderr):  # what libraries have to say is no part of the answer
        plan = make_plan(recipe, overrides or (), wishes)
    if as_json:
        from launch.planning.document import as_dict

        print(json.dumps(as_dict(plan), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from launch.planning.show import WIDTH, show

    console = Console()
    show(plan, console if console.is_terminal and console.width >= WIDTH else Console(width=WIDTH))


def make_plan(recipe: str | Path | Recipe, overrides: Sequence[str] = (), wishes: Wishes | None = None) -> Plan:
    """The plan of a recipe, by name, path or as an object.

    Raises:
        UsageError: the recipe or a wish is wrong, or a pretrained model's config cannot be had.
        DataError: the rows cannot be read, or are fewer than the lanes.
    """
    wishes = wishes or Wishes()
    _check(wishes)
    from launch.planning import advice, training
    from launch.planning.configurations import Planner
    from launch.planning.corpus import look
    from trainer.recipe_loading import load_recipe
    from trainer.rundir import RunDir

    resolved = load_recipe(recipe, overrides)
    limit, worlds, precisions = _limit(wishes), _ranks(resolved, wishes), _precisions(wishes)
    run = RunDir(wishes.run or Path("runs") / resolved.name)
    quiet = logging.getLogger("rankzero")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # what a training warns of, it will say itself
    try:
        with warnings.catch_warnings(action="ignore"):
            task, data = look(resolved, run)
            planner = Planner(resolved, task, data, "cpu" if wishes.cpu else "gpu")
            configurations = list(planner.configurations(worlds, precisions))
    finally:
        quiet.setLevel(level)
    whole = training.training(resolved, data)
    speed = _speed(wishes, limit, run)
    best = advice.cheapest(configurations, limit) if limit else None
    return Plan(
        recipe=resolved,
        sketch=planner.sketch,
        data=data,
        training=whole,
        checkpoint=training.checkpoint(resolved, planner.sketch, whole),
        shapes=planner.shapes,
        configurations=configurations,
        limit=limit,
        best=best,
        command=advice.command(recipe if isinstance(recipe, str | Path) else resolved.name, overrides, best)
        if best
        else None,
        speed=speed,
        hours={n: training.hours(resolved, whole, speed, n) for n in worlds} if speed and not speed.elsewhere else {},
        price=wishes.price,
        cpu=wishes.cpu,
        notes=_notes(planner, resolved, worlds, cpu=wishes.cpu and "bf16" in precisions),
    )


# -- wishes ------------------------------------------------------------------------------------------------------------


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _integers(text: str | None) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"--ranks {text}: write whole numbers with commas between them, such as 1,2,8") from None


def _check(wishes: Wishes) -> None:
    for name in ("memory", "throughput", "price"):
        value = getattr(wishes, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value:g}: more than 0")
    if wishes.gpu is not None and wishes.cpu:
        raise UsageError("--gpu and --cpu: give one of them")


def _precisions(wishes: Wishes) -> list[Precision]:
    from launch.planning.states import PRECISIONS

    same: dict[str, Precision] = {"tf32": "fp32", "no": "fp32", **{p: p for p in PRECISIONS}}
    for word in wishes.precisions:
        if word not in same:
            raise UsageError(f"--precision {word}: not known; allowed: fp32, tf32, bf16, fp16")
    if wishes.cpu and "fp16" in wishes.precisions:
        raise UsageError("--precision fp16: needs a GPU; on a CPU fp32 and bf16 train")
    asked = [same[word] for word in wishes.precisions]
    return [p for p in PRECISIONS if p in asked or not (asked or (wishes.cpu and p == "fp16"))]


def _limit(wishes: Wishes) -> Limit | None:
    import psutil

    from launch.planning.advice import GIB, Limit
    from launch.planning.gpus import find_gpu

    gpu = find_gpu(wishes.gpu) if wishes.gpu else None
    if wishes.memory is not None:
        return Limit(int(wishes.memory * GIB), gpu, wishes.cpu)
    if wishes.cpu:
        return Limit(psutil.virtual_memory().available, None, True)
    return Limit(int(gpu.memory * GIB), gpu) if gpu else None


def _ranks(recipe: Recipe, wishes: Wishes) -> list[int]:
    """Numbers of ranks to plan for, ascending.

    Raises:
        UsageError: more ranks than lanes, or fewer than one.
    """
    lanes, fuse = recipe.data.lanes, recipe.loop.fuse_lanes
    if not wishes.ranks:
        return [n for n in range(1, min(lanes, MOST_RANKS) + 1) if lanes % n == 0 and (lanes // n) % fuse == 0]
    for n in wishes.ranks:
        if not 1 <= n <= lanes:
            raise UsageError(
                f"--ranks {n}: each rank needs a lane, and data.lanes={lanes}; at most {lanes}, or a recipe with more "
                "lanes (which changes its steps)"
            )
        if fuse > 1 and (lanes % n or (lanes // n) % fuse):
            raise UsageError(f"--ranks {n}: loop.fuse_lanes={fuse} does not divide the {lanes / n:g} lanes of a rank")
    return sorted(set(wishes.ranks))


def _speed(wishes: Wishes, limit: Limit | None, run: Any) -> Speed | None:
    from launch.planning.training import Speed, measured

    if wishes.throughput is not None:
        return Speed(wishes.throughput, "as given")
    return measured(run, limit.gpu if limit else None, wishes.cpu)


def _notes(planner: Any, recipe: Recipe, worlds: Sequence[int], cpu: bool) -> list[str]:
    """What the numbers do not show; `cpu`: bf16 is planned on this machine's processor."""
    from trainer.cpu_info import EMULATED, bf16_arithmetic

    found = []
    if cpu and not bf16_arithmetic():
        found.append(f"{EMULATED}: take fp32")
    lanes = recipe.data.lanes
    if uneven := [n for n in worlds if lanes % n]:
        listed = ", ".join(map(str, uneven))
        found.append(f"{listed} ranks do not divide data.lanes={lanes}: some idle at the end of each step")
    if planner.made.unused:
        found.append(f"the loss does not depend on {', '.join(planner.made.unused)}: left as they are")
    if not planner.can_checkpoint:
        found.append("this model cannot checkpoint activations")
    if recipe.loop.compile:
        found.append("loop.compile: memory is that of the eager model; compiled, activations are mostly fewer")
    return found
