"""The plan of a recipe: memory, steps, time and disk. Loads no weights and writes nothing."""

from __future__ import annotations

import math
import shlex
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launch.tools.plan.corpus import Epoch, read_corpus
from launch.tools.plan.gpus import GPUS, WITHOUT_BF16, find_gpu, is_gpu
from launch.tools.plan.memory import FULL, PRECISIONS, Configuration, configurations
from launch.tools.plan.trace import Layout, Tracer
from trainer.cpu_info import EMULATED, bf16_arithmetic
from trainer.data_parallel import fusable
from trainer.engine.writer import ROOM
from trainer.errors import UsageError
from trainer.files import read_json
from trainer.recipe import Recipe
from trainer.recipe_loading import load_recipe
from trainer.report.run_files import read_history
from trainer.rundir import RunDir

GIB = 2**30
MOST_RANKS = 64  # planned for when none are given
CONTEXT = 1 * GIB  # for CUDA, workspaces of its libraries and buffers of NCCL: a rule of thumb
SAME = {"tf32": "fp32", "no": "fp32", "fp8": "bf16"}  # precisions that need the same memory
USABLE = 0.95  # of the rest, because an allocator cannot fill its last pages


@dataclass(frozen=True)
class PlanOptions:
    """The options of `rankzero plan`. `memory` is in GiB, `throughput` in tokens per second and rank.

    `copies` are of the model, each sharded by FSDP2 over its part of the ranks (HSDP).
    """

    gpu: str | None = None
    memory: float | None = None
    ranks: Sequence[int] = ()
    precisions: Sequence[str] = ()
    throughput: float | None = None
    price: float | None = None
    cpu: bool = False
    run: Path | None = None
    copies: int = 1


@dataclass(frozen=True)
class Plan:
    """What `rankzero plan` knows of a run. Sizes are in bytes."""

    recipe: str
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    checkpoint: dict[str, Any]
    device: str
    memory: dict[str, Any] | None  # of a device; tensors may take those bytes that are usable
    throughput: dict[str, Any] | None  # tokens per second and rank; elsewhere: the device, if it is not the planned one
    answer: Configuration | None  # the cheapest configuration that fits
    command: str | None  # starts it
    cost: float | None
    notes: list[str]
    configurations: list[Configuration]

    def document(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        values = {**vars(self), "configurations": [c.row() for c in self.configurations]}
        answer = {"command": values.pop("command"), "cost": values.pop("cost")}
        values["answer"] = self.answer.row() | answer if self.answer else None
        return values


def make_plan(recipe: str | Path | Recipe, overrides: Sequence[str] = (), options: PlanOptions | None = None) -> Plan:
    """Return the plan of a recipe, given by name, by path or as an object.

    Raises:
        UsageError: the recipe or an option is wrong, or its model cannot be built or planned.
        DataError: the rows cannot be read, or are fewer than the lanes.
    """
    options = options or PlanOptions()
    resolved, gpu = load_recipe(recipe, overrides), find_gpu(options.gpu) if options.gpu else None
    memory, ranks, precisions = _memory(options, gpu), _ranks(resolved, options.ranks), _precisions(options)
    with warnings.catch_warnings(action="ignore"):  # a training logs its own
        task, epoch, vocabulary, rows = read_corpus(resolved)
        tracer = Tracer(task, epoch.largest, on_cpu=options.cpu)
        planned = list(configurations(tracer, ranks, precisions, _copies(options.copies, ranks)))
    layout, training, lanes = tracer.layout, _training(resolved, epoch), resolved.data.lanes
    if options.throughput is not None:
        throughput: Any = {"tokens": options.throughput, "origin": "as given", "elsewhere": None}
    else:
        throughput = _measured(RunDir(options.run or Path("runs") / resolved.name), gpu, options.cpu)
    for c in planned:
        c.fits = c.peak * (c.ranks if options.cpu else 1) <= memory["usable"] if memory else None
        if throughput and not throughput["elsewhere"]:  # ranks wait for the one with most lanes
            c.hours = training["tokens"] / lanes * math.ceil(lanes / c.ranks) / throughput["tokens"] / 3600
    best = cheapest(planned, bf16=bf16_arithmetic() if options.cpu else gpu not in WITHOUT_BF16)
    return Plan(
        recipe=resolved.name,
        model={"parameters": layout.elements, "trained": layout.trained, **vocabulary},
        data={**rows, "largest_micro_batch": tracer.shapes},
        training=training,
        checkpoint=_checkpoint(resolved, layout, training),
        device="cpu" if options.cpu else "gpu",
        memory=memory,
        throughput=throughput,
        answer=best,
        command=_command(recipe, overrides, best) if best else None,
        cost=best.hours * options.price * best.ranks if best and best.hours and options.price else None,
        notes=[
            *_notes(lanes, ranks, options, precisions),
            *_unsharded(resolved, layout),
            *_fused(resolved, best, memory["usable"] if memory else None, on_cpu=options.cpu),
        ],
        configurations=planned,
    )


def _precisions(options: PlanOptions) -> list[str]:
    words = [SAME.get(word, word) for word in options.precisions]
    if unknown := set(words) - set(PRECISIONS):
        raise UsageError(f"--precision {', '.join(unknown)}: not known; allowed: fp32, tf32, bf16, fp16, fp8")
    if on_gpus := {"fp16", "fp8"} & {*options.precisions} if options.cpu else set():
        raise UsageError(f"--precision {', '.join(sorted(on_gpus))}: needs a GPU; a CPU trains in fp32 and bf16")
    return [p for p in PRECISIONS if p in words or not (words or (options.cpu and p == "fp16"))]


def _memory(options: PlanOptions, gpu: str | None) -> dict[str, Any] | None:
    for name in ("memory", "throughput", "price"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UsageError(f"--{name} {value:g}: must be more than 0")
    if gpu and options.cpu:
        raise UsageError("--gpu and --cpu: give one of them")
    total = int((options.memory or GPUS.get(gpu or "", 0)) * GIB)
    if options.cpu:  # is shared by all ranks
        total = total or psutil.virtual_memory().available
        return {"gpu": None, "total": total, "usable": total}
    usable = int((total - CONTEXT) * USABLE)
    return {"gpu": gpu, "total": total, "usable": usable} if total else None


def _ranks(recipe: Recipe, wanted: Sequence[int]) -> list[int]:
    """Return the numbers of ranks to plan for, ascending: by default those that divide the lanes."""
    lanes, fuse = recipe.data.lanes, recipe.loop.fused_before_measuring
    even = [n for n in range(1, lanes + 1) if lanes % n == 0 and fuse in fusable(lanes, n)]
    for n in wanted:
        if not 1 <= n <= lanes or (fuse > 1 and n not in even):
            best = ", ".join(map(str, even))
            raise UsageError(f"--ranks {n}: each rank needs {fuse} or more of data.lanes={lanes}; best are {best}")
    return sorted(set(wanted)) or [n for n in even if n <= MOST_RANKS]


def _copies(copies: int, ranks: Sequence[int]) -> int:
    if copies < 1 or (copies > 1 and not any(n % copies == 0 and n > copies for n in ranks)):
        text = f"--copies {copies}: must divide a number of ranks, with two ranks or more for each copy"
        raise UsageError(f"{text}; ranks planned for: {', '.join(map(str, ranks))} (--ranks)")
    return copies


def _training(recipe: Recipe, epoch: Epoch) -> dict[str, Any]:
    """Return the length of the run. `ends`: the key of the recipe that ends it."""
    by_epochs = epoch.steps * recipe.loop.epochs if recipe.loop.epochs is not None else None
    steps = min(n for n in (by_epochs, recipe.loop.max_steps) if n is not None)
    epochs, ends = steps / epoch.steps, "loop.epochs" if steps == by_epochs else "loop.max_steps"
    sums = {name: round(getattr(epoch, name) * epochs) for name in ("rows", "tokens", "padded")}
    return {"steps": steps, "steps_per_epoch": epoch.steps, "epochs": epochs, "ends": ends, **sums}


def _measured(run: RunDir, gpu: str | None, on_cpu: bool) -> dict[str, Any] | None:
    """Return the median of what an earlier run has logged, divided by its ranks. None without such a run."""
    manifest, history = read_json(run.manifest), read_history(run.metrics)
    speeds = [line.get("tokens_per_second", 0) for line in history if line.get("split") == "train"]
    if not manifest or not any(speeds):
        return None
    devices, ranks = manifest.get("devices") or {}, int(manifest["ranks"])
    names = sorted(set(devices.get("gpus") or []))
    device = ", ".join(names) or devices.get("cpu") or "an unknown processor"
    same = not names if on_cpu else bool(names) and all(gpu is None or is_gpu(gpu, name) for name in names)
    origin = f"the median of {run.metrics} ({manifest['engine']} x {ranks}, {manifest.get('precision')}, on {device})"
    tokens = statistics.median(filter(None, speeds)) / ranks
    return {"tokens": tokens, "origin": origin, "elsewhere": None if same else device}


def _checkpoint(recipe: Recipe, layout: Layout, training: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes of one checkpoint, and of all that are kept and one more. `background`: a copy fits memory."""
    averaging, loop = recipe.optim.averaging, recipe.loop
    size = FULL * (layout.elements * (1 + (averaging.kind == "ema")) + round(layout.moments * layout.trained))
    intervals = {n if isinstance(n, int) else training["steps_per_epoch"] for n in (loop.save_every, loop.eval_every)}
    saves = sum(math.ceil(training["steps"] / n) for n in intervals)  # the last step is always saved
    protected = averaging.last if averaging.kind == "last" else 1
    kept = saves if loop.keep == "all" else max(loop.keep, protected) + int(recipe.data.validation is not None)
    kept = min(saves, kept)
    free = psutil.virtual_memory().available
    sizes = {"size": size, "kept": kept, "on_disk": size * (kept + 1), "saves": saves}
    return sizes | {"free": free, "background": free > ROOM * size}


def cheapest(planned: Sequence[Configuration], *, bf16: bool) -> Configuration | None:
    """Return the cheapest configuration that fits and has a shipped config: docs/plan.md describes the order."""
    fastest = ("bf16", "fp16", "fp32") if bf16 else ("fp16", "fp32", "bf16")
    return min(
        (c for c in planned if c.fits and c.config),
        key=lambda c: (c.ranks, c.offload, c.checkpointed, fastest.index(c.precision), c.sent),
        default=None,
    )


def _command(recipe: str | Path | Recipe, overrides: Sequence[str], best: Configuration) -> str:
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    words = [word for word in overrides if not word.startswith("loop.activation_checkpointing=")]
    some = best.activation_checkpointing
    setting = f"{{every: {some['every']}}}" if isinstance(some, dict) else "true"
    words += [f"loop.activation_checkpointing={setting}"] if some else []
    words += ["--config", *str(best.config).split()]
    words += ["--nproc", str(best.ranks)] if best.ranks > 1 or best.offload else []
    return shlex.join(["rankzero", "train", name, *words])


def _notes(lanes: int, ranks: Sequence[int], options: PlanOptions, precisions: Sequence[str]) -> list[str]:
    """Return what the numbers do not show."""
    emulated = options.cpu and "bf16" in precisions and not bf16_arithmetic()
    notes = [f"{EMULATED}: take fp32"] if emulated else []
    if "fp8" in options.precisions:
        notes.append("fp8 needs the memory of bf16, which is shown: under single and ddp take --config ddp_fp8")
    if uneven := [n for n in ranks if lanes % n]:
        notes.append(f"{', '.join(map(str, uneven))} ranks do not divide data.lanes={lanes}: some idle at each step")
    return notes


def _fused(recipe: Recipe, best: Configuration | None, usable: int | None, *, on_cpu: bool) -> list[str]:
    """Return what `loop.fuse_lanes: auto` will choose, as far as a plan knows."""
    if recipe.loop.fuse_lanes != "auto":
        return []
    text = "loop.fuse_lanes=auto is 1 on a CPU"
    if not on_cpu:
        text = "loop.fuse_lanes=auto: planned with 1 lane in a forward. A GPU measures at the first start what fits"
        if best is not None and usable is not None:
            lane = best.activations + best.logits
            own = fusable(recipe.data.lanes, best.ranks)
            fits = max(n for n in own if n == 1 or best.step + (n - 1) * lane <= usable)
            text += f": by this plan {fits} of {own[-1]} lanes of a rank for the cheapest configuration"
    return [text]


def _unsharded(recipe: Recipe, layout: Layout) -> list[str]:
    """Return why engines that shard the state of the optimizer are not planned."""
    text = f"optim.name={recipe.optim.name} updates a weight from others of its tensor: ZeRO and FSDP2 refuse it"
    return [] if layout.shardable else [text]
