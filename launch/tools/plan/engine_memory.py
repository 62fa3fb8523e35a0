"""The memory and the traffic of one rank under each engine.

Each engine is a function that returns a `RankMemory`: what the rank keeps between two steps, and what it adds to the
activations of a step. Sizes follow trainer.engine, torch 2.13 and DeepSpeed 0.19.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch.tools.plan.activation_trace import Trace
from launch.tools.plan.layout import Parameter, ParamLayout
from trainer.engine.engines import BUCKET

FULL = 4  # bytes of an fp32 value
# DeepSpeed's defaults, in elements
PREFETCH = 50_000_000  # ZeRO-3 gathers so many weights ahead
REUSED = 500_000_000  # so many weights stay gathered from forward to backward: half of stage3_max_reuse_distance
PERSISTENT = 100_000  # ZeRO-3 shards no parameter up to this size
SUB_GROUP = 10**9  # ZeRO-3 updates so many elements as one tensor


@dataclass(frozen=True)
class Setting:
    """What the memory of an engine depends on, besides the model.

    `width` is the size of a weight in the forward: 2 bytes where a sharded engine computes in bf16 or fp16, else 4.
    `passes` are the forwards and backwards of a rank in a step.
    """

    ranks: int
    on_cpu: bool
    width: int = FULL
    passes: int = 1
    averaged: bool = False
    offload: bool = False

    @property
    def ring(self) -> float:
        """Share of a tensor that a rank sends in an all-gather or reduce-scatter. An all-reduce sends twice that."""
        return (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. Parameters, gradients, optimizer and host are exact.

    Attributes:
        parameters: weights on the device, as the engine keeps them.
        gradients: those that the optimizer reads.
        optimizer: moments, step counts, and fp32 weights that are kept for the update.
        host: in the machine's memory.
        setup: the most while the engine is set up.
        sent: over the network in a step.
        before: gradients that are there when the last backward of a step begins.
        kept: of each element of a gradient, once it is ready. Negative where more is freed than kept.
        working: buffers during a forward and backward.
        arriving: further buffers during a forward.
        bucket: further buffers once the first gradient is ready.
        after: gradients and buffers when gradients are reduced after a backward, or are made flat for the update.
        resident: gradients and buffers between two steps.
    """

    parameters: int
    gradients: int
    optimizer: int
    host: int
    setup: int
    sent: float
    before: int = 0
    kept: float = 0
    working: int = 0
    arriving: int = 0
    bucket: int = 0
    after: int = 0
    resident: int = 0

    def peak(self, trace: Trace) -> dict[str, int]:
        """Return the parts of the largest sum in a step, without parameters and optimizer state."""
        now: dict[str, float] = {"activations": 0, "logits": 0, "gradients": self.before}
        now["buffers"] = self.working + self.arriving
        most, parts = 0.0, now
        for kind, value in trace:
            if kind == "backward":
                now["buffers"] = self.working
            elif kind == "gradient":  # its storage belongs to the trace, which frees it next
                now["buffers"] = self.working + self.bucket
                now["gradients"] += self.kept * value
                continue
            else:
                now[kind] += value
            if (total := sum(now.values())) > most:
                most, parts = total, dict(now)
        if self.after > most:
            parts = {"activations": 0, "logits": 0, "gradients": self.gradients, "buffers": self.after - self.gradients}
        return {name: round(size) for name, size in parts.items()}


def single(layout: ParamLayout, setting: Setting) -> RankMemory:
    """One process, which adds up gradients."""
    gradients, again = FULL * layout.trained_elements, setting.passes > 1
    return RankMemory(
        parameters=FULL * layout.elements,
        gradients=gradients,
        optimizer=layout.moments * gradients + FULL * layout.counts * len(layout.trained),
        host=0,
        setup=FULL * layout.elements + gradients,  # of a backward that finds unused parameters
        sent=0,
        before=gradients if again else 0,
        kept=0 if again else FULL,
    )


def ddp(layout: ParamLayout, setting: Setting) -> RankMemory:
    """Buckets are there all the time. Gradients are kept outside of them until the last backward of a step."""
    whole = single(layout, setting)
    return replace(
        whole,
        sent=2 * setting.ring * whole.gradients + layout.buffers,
        before=whole.gradients + whole.before,
        kept=-FULL if whole.before else 0,
        resident=whole.gradients,
    )


def zero1(layout: ParamLayout, setting: Setting) -> RankMemory:
    """Gradients are added up on every rank. After the last backward each rank keeps those that it updates."""
    rank, again = _flat_partition(layout, setting), setting.passes > 1
    bucket, copy = _bucket(layout, setting, setting.width)
    written = setting.width * min(layout.trained_elements, BUCKET)
    gradients, allocated = setting.width * layout.trained_elements, 0 if setting.on_cpu else bucket
    flat = rank.gradients + (setting.width * rank.gradients // FULL if setting.width < FULL else 0)  # for the update
    return replace(
        rank,
        gradients=gradients,
        sent=rank.sent + 2 * setting.ring * FULL * layout.trained_elements,
        before=gradients if again else 0,
        kept=0 if again else setting.width,
        working=allocated if again else 0,
        bucket=0 if again else allocated,
        after=max(gradients - written + bucket + copy, setting.width * _touched(layout, setting.ranks) + flat),
    )


def zero2(layout: ParamLayout, setting: Setting) -> RankMemory:
    """Gradients are reduced in each backward. Each rank adds up those that it updates, in fp32."""
    rank, (bucket, copy) = _flat_partition(layout, setting), _bucket(layout, setting, setting.width)
    added = FULL * _touched(layout, setting.ranks) if setting.width == FULL else rank.gradients
    before = added if setting.passes > 1 else 0
    return replace(
        rank,
        sent=rank.sent + setting.passes * 2 * setting.ring * FULL * layout.trained_elements,
        before=before,
        bucket=bucket,
        after=added + bucket + max(before, copy),
    )


def _flat_partition(layout: ParamLayout, setting: Setting) -> RankMemory:
    """Return what ZeRO-1 and 2 have in common: a rank updates a part of the flat tensor of each optimizer group."""
    padded, whole = _padded(layout, setting.ranks), single(layout, setting)
    part = FULL * (sum(padded) // setting.ranks)
    parameters = setting.width * (sum(padded) + layout.elements - layout.trained_elements)
    flat = setting.width * layout.elements + parameters + part  # while it is made of the weights
    return RankMemory(
        parameters=parameters,
        gradients=part,
        optimizer=part * (1 + layout.moments) + FULL * layout.counts * len(padded),
        host=whole.parameters + layout.buffers,
        setup=max(whole.setup, flat) + (whole.parameters if setting.on_cpu else 0),
        sent=setting.ring * (parameters + (2 * whole.parameters if setting.averaged else 0)),
    )


def zero3(layout: ParamLayout, setting: Setting) -> RankMemory:
    """Weights are gathered ahead of their use, and stay gathered where the backward needs them soon."""
    ranks, width, whole = setting.ranks, setting.width, single(layout, setting)
    bucket, copy = _bucket(layout, setting, FULL)
    large = [p for p in layout.parameters if p.size > PERSISTENT]
    elements = sum(p.size for p in large)
    part, trained, gathered = (
        sum(math.ceil(p.size / ranks) for p in parameters) for parameters in (layout.parameters, layout.trained, large)
    )
    small = width * (layout.elements - elements)
    fresh = setting.on_cpu and setting.passes == 1  # nothing is written to the bucket before
    tensors = sum(math.ceil(sum(p.size for p in group) / SUB_GROUP) for group in layout.groups)
    times = 1 + max(0, elements - REUSED) / max(1, elements)  # weights that do not stay are gathered twice
    sent = setting.passes * ranks * (times * width * gathered + FULL * trained) + small
    rank = RankMemory(
        parameters=width * part + small,
        gradients=FULL * trained,
        optimizer=FULL * (trained * (1 + layout.moments) + layout.counts * tensors),
        host=whole.parameters + layout.buffers,
        setup=whole.setup + (whole.parameters if setting.on_cpu else 0),
        sent=setting.ring * (sent + (whole.parameters if setting.averaged else 0)),
        before=FULL * trained,
        working=width * min(elements, REUSED + PREFETCH) + (0 if fresh else bucket),
        arriving=width * min(elements, PREFETCH),
        bucket=bucket if fresh else 0,
        after=FULL * trained + bucket + max(copy, FULL * trained),
        resident=FULL * trained + bucket,
    )
    if not setting.offload:
        return rank
    # a gradient is on the host twice: as it is added up, and for the optimizer
    host = rank.host + width * part + 2 * FULL * trained + rank.optimizer
    offloaded = replace(rank, parameters=small, gradients=0, optimizer=0, host=host)
    return replace(offloaded, before=0, after=bucket + copy, resident=bucket)


def fsdp2(layout: ParamLayout, setting: Setting) -> RankMemory:
    """A layer's weights are gathered for its forward and its backward, those outside of layers once for both.

    Gradients stay whole in fp32 until the last backward of a step, because Accelerate reduces none before.
    """
    ranks, width, whole = setting.ranks, setting.width, single(layout, setting)
    rows = _rows(layout.parameters, ranks)
    outside = _rows(layout.blocks[None], ranks)
    layer = max((_rows(inside, ranks) for block, inside in layout.blocks.items() if block is not None), default=outside)
    trained = FULL * _rows(layout.trained, ranks)
    sent = ranks * (setting.passes * width * (2 * rows - outside) + trained)
    return RankMemory(
        parameters=FULL * rows,
        gradients=trained,
        optimizer=layout.moments * trained + FULL * layout.counts * len(layout.trained),
        host=whole.parameters + layout.buffers,
        setup=whole.setup + (whole.parameters if setting.on_cpu else 0),
        sent=setting.ring * (sent + (whole.parameters if setting.averaged else 0)),
        before=whole.before,
        kept=FULL / ranks - (FULL if whole.before else 0),
        # weights outside of layers, a layer as it arrives and as it is used, gradients of a layer as they are reduced
        working=ranks * (width * (outside + 2 * layer) + FULL * layer),
    )


# -- how parameters are sharded ----------------------------------------------------------------------------------------


def _bucket(layout: ParamLayout, setting: Setting, width: int) -> tuple[int, int]:
    """Return the bytes of DeepSpeed's bucket of gradients, and of its copies while it is reduced.

    A CPU pays only for the part of the bucket that is written. A half bucket is copied to fp32 as well.
    """
    filled = min(layout.trained_elements, BUCKET)
    return width * (filled if setting.on_cpu else BUCKET), filled * (width if width == FULL else width + FULL)


def _padded(layout: ParamLayout, ranks: int) -> list[int]:
    """Return the elements of each flat optimizer group of ZeRO-1 and 2: a multiple of twice the ranks."""
    return [math.ceil(sum(p.size for p in group) / (2 * ranks)) * 2 * ranks for group in layout.groups]


def _touched(layout: ParamLayout, ranks: int) -> int:
    """Return the elements of all parameters of which a rank of ZeRO-1 or 2 updates a part. The most of any rank."""
    elements = [0] * ranks
    for group, padded in zip(layout.groups, _padded(layout, ranks), strict=True):
        begin, part = 0, padded // ranks
        for p in group:
            for rank in range(begin // part, (begin + p.size - 1) // part + 1):
                elements[rank] += p.size
            begin += p.size
    return max(elements)


def _rows(parameters: Sequence[Parameter], ranks: int) -> int:
    """Return the elements of a rank's rows of parameters under FSDP2, padding included. A scalar is one row."""
    rows = [p.shape[0] if p.shape else 1 for p in parameters]
    return sum(math.ceil(n / ranks) * (p.size // max(1, n)) for n, p in zip(rows, parameters, strict=True))
