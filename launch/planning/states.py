"""What each engine keeps between two steps, to the byte: weights, gradients and optimizer, on the device and off it.

Sizes follow trainer.engine and the libraries that it sets up (torch 2.13, DeepSpeed 0.19): tests/test_plan.py compares
them with the tensors of real runs. W = ranks; all are those of rank zero, which never holds less than another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from launch.planning.model import Parameter, Sketch
from launch.planning.rehearsal import Arithmetic, Device
from trainer.engine.engines import SHARDED, deepspeed_config

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

ENGINES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")  # by what they ask of the network, least first
FULL, HALF = 4, 2  # bytes of a number
SUB_GROUP = 10**9  # elements that ZeRO-3 steps as one tensor, DeepSpeed's default


@dataclass(frozen=True)
class ZeroSettings:
    """What DeepSpeed is set to: elements, not bytes."""

    reduce_bucket: int = 500_000_000  # gradients that are reduced together
    prefetch: int = 50_000_000  # weights that ZeRO-3 gathers ahead
    reuse: int = 1_000_000_000  # weights needed again within so many stay gathered
    persistent: int = 100_000  # a parameter up to this size is never cut up by ZeRO-3

    @classmethod
    def of_rankzero(cls) -> ZeroSettings:
        """With what `trainer.engine.engines` writes into DeepSpeed's config, its defaults for the rest."""
        zero = deepspeed_config(3, "no", 1, 1.0)["zero_optimization"]
        names = {
            "reduce_bucket": "reduce_bucket_size",
            "prefetch": "stage3_prefetch_bucket_size",
            "reuse": "stage3_max_reuse_distance",
            "persistent": "stage3_param_persistence_threshold",
        }
        return cls(**{ours: int(zero[theirs]) for ours, theirs in names.items() if theirs in zero})


@dataclass(frozen=True)
class Setup:
    """One way to run: `offload` is ZeRO-3's, of weights and optimizer to the machine's memory."""

    engine: str
    ranks: int
    precision: Precision
    device: Device
    offload: bool = False
    checkpointing: bool = False
    zero: ZeroSettings = ZeroSettings()

    @property
    def sharded(self) -> bool:
        return self.engine in SHARDED

    @property
    def arithmetic(self) -> Arithmetic:
        """Engines that cut the model up compute with half weights where the others cast in every forward."""
        if self.precision == "fp32":
            return "fp32"
        return "half" if self.sharded else "autocast"

    @property
    def width(self) -> int:
        """Bytes of a weight as it is computed with."""
        return HALF if self.arithmetic == "half" else FULL

    @property
    def name(self) -> str:
        return self.engine + (" offload" if self.offload else "")


@dataclass(frozen=True)
class States:
    """Bytes of one rank between two steps; `host` is in the machine's memory, the rest on the device."""

    parameters: int
    gradients: int  # as they stand when the optimizer begins
    optimizer: int  # moments, counts of steps, and fp32 weights where others are computed with
    host: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def states(sketch: Sketch, setup: Setup) -> States:
    """Model states of one rank."""
    if not setup.sharded:
        return _whole(sketch)
    copy = FULL * sketch.all_elements + sketch.buffers  # what is evaluated
    if setup.engine == "fsdp2":
        return _fsdp2(sketch, setup, copy)
    return _zero3(sketch, setup, copy) if setup.engine == "zero3" else _zero12(sketch, setup, copy)


def _whole(sketch: Sketch) -> States:
    trained = sketch.trained_elements
    counts = FULL * len(sketch.trained) if sketch.counts else 0
    return States(FULL * sketch.all_elements, FULL * trained, sketch.moments * FULL * trained + counts, 0)


def _zero12(sketch: Sketch, setup: Setup, copy: int) -> States:
    padded = padded_groups(sketch, setup.ranks)
    part = sum(padded) // setup.ranks
    frozen = sketch.all_elements - sketch.trained_elements
    counts = FULL * len(padded) if sketch.counts else 0
    # stage 1 sums up whole gradients as they are computed; stage 2 keeps its part of them, in fp32
    gradients = setup.width * sketch.trained_elements if setup.engine == "zero1" else FULL * part
    return States(setup.width * (sum(padded) + frozen), gradients, FULL * part * (1 + sketch.moments) + counts, copy)


def _zero3(sketch: Sketch, setup: Setup, copy: int) -> States:
    part = sum(part_of(p, setup.ranks) for p in sketch.trained)
    whole = sum(p.size for p in sketch.parameters if p.size <= setup.zero.persistent)
    frozen = sum(part_of(p, setup.ranks) for p in sketch.parameters if p.group is None)
    counts = FULL * sum(_sub_groups(group, setup.ranks) for group in sketch.groups) if sketch.counts else 0
    optimizer = FULL * part * (1 + sketch.moments) + counts  # also in fp32 the optimizer has weights of its own
    cut = setup.width * (part + frozen)
    if setup.offload:
        # the partition's gradient stands twice on the host: as it is summed up, and in fp32 for the optimizer
        return States(setup.width * whole, 0, 0, copy + cut + 2 * FULL * part + optimizer)
    return States(cut + setup.width * whole, FULL * part, optimizer, copy)


def _fsdp2(sketch: Sketch, setup: Setup, copy: int) -> States:
    cut = sum(rows_of(p, setup.ranks) for p in sketch.parameters)
    trained = sum(rows_of(p, setup.ranks) for p in sketch.trained)
    counts = FULL * len(sketch.trained) if sketch.counts else 0
    return States(FULL * cut, FULL * trained, sketch.moments * FULL * trained + counts, copy)


# -- how parameters are cut --------------------------------------------------------------------------------------------


def padded_groups(sketch: Sketch, ranks: int) -> list[int]:
    """Elements of each optimizer group as ZeRO-1 and 2 lay it out flat: a multiple of twice the ranks."""
    unit = 2 * ranks
    return [math.ceil(sum(p.size for p in group) / unit) * unit for group in sketch.groups]


def part_of(p: Parameter, ranks: int) -> int:
    """Elements of one rank's part of a parameter under ZeRO-3, padding included."""
    return math.ceil(p.size / ranks)


def rows_of(p: Parameter, ranks: int) -> int:
    """Elements of one rank's rows of a parameter under FSDP2, padding included; a scalar counts as one row."""
    rows = p.shape[0] if p.shape else 1
    return math.ceil(rows / ranks) * (p.size // max(1, rows))


def touched(sketch: Sketch, ranks: int) -> int:
    """Elements of all parameters that a rank's part of a ZeRO-1 or 2 group touches; the largest of any rank."""
    most = 0
    for rank in range(ranks):
        found = 0
        for group, padded in zip(sketch.groups, padded_groups(sketch, ranks), strict=True):
            begin, end, at = rank * padded // ranks, (rank + 1) * padded // ranks, 0
            for p in group:
                found += p.size if at < end and at + p.size > begin else 0
                at += p.size
        most = max(most, found)
    return most


def _sub_groups(group: list[Parameter], ranks: int) -> int:
    """Tensors that ZeRO-3 cuts a group into: each is closed once it holds SUB_GROUP elements."""
    count, held = 0, 0
    for p in group:
        held += p.size
        if held >= SUB_GROUP or p is group[-1]:
            count, held = count + 1, 0
    return count
