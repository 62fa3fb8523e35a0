"""Every way to run a recipe, with the memory and the traffic of one rank.

docs/plan.md lists the terms of each engine, benchmarks/plan_memory.py compares them with real runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from launch.configs import describe
from launch.tools.plan.trace import Trace, Tracer, peak_of
from trainer.data_parallel import DataParallel
from trainer.engine.engines import BUCKET, gathered_limit
from trainer.engine_specs import ENGINES, EngineSpec

PRECISIONS = ("fp32", "bf16", "fp16")
FULL = 4  # bytes of an fp32 value
AHEAD = 50_000_000  # elements that ZeRO-3 gathers ahead (DeepSpeed's default)
LIBRARIES, LIBRARIES_BF16 = 50_000_000, 75_000_000  # bytes of a CPU rank besides tensors, and more in bf16: measured


class Configuration:
    """One way to run a recipe. Sizes are bytes of the rank that needs most.

    Padding of parts and step counts of the optimizer are not counted: less than 1% of all but the smallest models.
    """

    def __init__(
        self, tracer: Tracer, spec: EngineSpec, offload: bool, ranks: int, precision: str, checkpointing: int,
        copies: int = 1,
    ) -> None:  # fmt: skip
        recipe, layout = tracer.task.recipe, tracer.layout
        self.engine, self.offload, self.ranks, self.precision = spec.name, offload, ranks, precision
        self.copies = copies  # of the model, each in as many parts as it has ranks (HSDP)
        self._parts = ranks // copies
        self.activation_checkpointing = {0: False, 1: True}.get(checkpointing, {"every": checkpointing})
        self._checkpointed = checkpointing and 1 / checkpointing  # share of the layers
        self.fits: bool | None = None
        self.hours: float | None = None
        self._spec, self._layout, self._on_cpu, self._zero = spec, layout, tracer.on_cpu, spec.zero_stage or 0
        lanes = DataParallel(0, ranks).lane_groups(recipe.data.lanes, recipe.loop.fused_before_measuring)
        self._passes = len(lanes) * (1 if recipe.optim.adversarial.kind == "none" else 2)  # forwards in a step
        self._average = FULL * layout.elements * (recipe.optim.averaging.kind == "ema")
        self._average //= self._parts if spec.never_complete else 1
        half = spec.sharded and precision != "fp32"  # engines without sharding use autocast
        self._width = 2 if half else FULL  # bytes of a weight in the forward
        trace = tracer.trace(half=half, autocast=precision != "fp32" and not half, checkpointing=checkpointing)
        activations = peak_of(trace)
        self.activations, self.logits = round(activations["activations"]), round(activations["logits"])
        self._set_states()
        kept = {"parameters": self.parameters, "optimizer": self.optimizer, "average": self._average}
        kept["copy"] = self.host if self._on_cpu else 0
        kept["libraries"] = (LIBRARIES + LIBRARIES_BF16 * (precision == "bf16")) * self._on_cpu
        self.step_parts = self._step(trace) | {name: size for name, size in kept.items() if size}
        self.step = sum(self.step_parts.values())
        self.start = self._start() + kept["libraries"]
        moved = self._moved()
        resident = {0: self._bucket, 3: self._bucket + self.gradients}.get(self._zero, 0) + layout.buffers
        self.evaluation = sum(kept.values()) + resident + moved + tracer.evaluation
        self.peak = max(self.step, self.start, self.evaluation)
        self.sent, self.config = self._sent(), self._config()

    def row(self) -> dict[str, Any]:
        """Return the configuration as in the JSON document. docs/plan.md describes the columns."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @property
    def title(self) -> str:
        copies = f" x {self.copies}" if self.copies > 1 else ""
        return self.engine + copies + (" offload" if self.offload else "")

    @property
    def checkpointed(self) -> float:
        """The share of the layers that run again in the backward pass."""
        return self._checkpointed

    def _config(self) -> str | None:
        """Return the shipped Accelerate config, with options of `rankzero train`, if there is one."""
        spec, ddp = self._spec, ENGINES["ddp"]
        if self.copies > 1:
            return self._hybrid_config()
        if spec.sharded and self.precision != ("fp32" if self._on_cpu else "bf16"):
            return None
        if spec.sharded or self.precision == "fp32":
            return (spec.cpu_config if self._on_cpu else spec.gpu_config) + ("_offload" if self.offload else "")
        name = f"{ddp.cpu_config if self._on_cpu else ddp.gpu_config}_{self.precision}"
        return f"{name} --nproc 1" if spec.one_process else name

    def _hybrid_config(self) -> str | None:
        """Return the shipped config with these copies and ranks. Sizes of others are set in a copy of the file."""
        name = (self._spec.cpu_config if self._on_cpu else self._spec.gpu_config) + "_hybrid"
        plan = describe(name)
        same = (plan.copies, plan.ranks, plan.precision.replace("no", "fp32")) == (
            self.copies, self.ranks, self.precision,
        )  # fmt: skip
        return name if same else None

    def _set_states(self) -> None:
        layout, zero, sharded = self._layout, self._zero, self._spec.sharded
        part = dict.fromkeys(self._spec.shards, self._parts)
        self.parameters = (self._width if zero else FULL) * layout.elements // part.get("parameters", 1)
        if zero == 3 and self._width < FULL:  # frozen ones have their fp32 weights besides, as trained ones do
            self.parameters += FULL * (layout.elements - layout.trained) // self._parts
        self.gradients = (self._width if zero == 1 else FULL) * layout.trained // part.get("gradients", 1)
        self.optimizer = round(FULL * layout.trained * (layout.moments + bool(zero))) // part.get("optimizer", 1)
        self.host = FULL * layout.elements * (not self._spec.never_complete) + layout.buffers if sharded else 0
        if self.offload:  # a gradient is on the host twice: as it is added up, and for the optimizer
            self.host += self.parameters + 2 * self.gradients + self.optimizer
            self.parameters = self.gradients = self.optimizer = 0
        self.parameters += self._width * layout.small if zero == 3 else 0
        # Gradients that are reduced together: DDP keeps all of them. A CPU pays for what is written.
        self._bucket = FULL * layout.trained * (not self._spec.one_process) * (not sharded)
        if zero:
            elements = min(layout.trained, BUCKET) if self._on_cpu else BUCKET
            self._bucket = elements * (FULL if zero == 3 else self._width)

    def _start(self) -> int:
        """Return what it takes to set up the engine: the whole model and one gradient, before they are sharded.

        Or this rank's part of the model, a tensor that is computed, and its place.
        """
        layout = self._layout
        if self._spec.never_complete:
            filled = self.parameters + 2 * FULL * max(layout.outside, layout.layer)
            if not self._zero:
                return filled
            # DeepSpeed makes the buffers of gradients and the fp32 weights, which are set from parts in fp32
            weights = FULL * layout.trained // self._parts * (1 + (self._width < FULL)) * (not self.offload)
            return filled + weights + self.gradients + self._bucket
        copies = 2 if self._spec.sharded and self._on_cpu else 1
        return FULL * (layout.elements * copies + layout.trained)

    def _moved(self) -> int:
        """Return what an evaluation needs besides: layers that are gathered, a copy on the GPU, or other weights."""
        layout, spec = self._layout, self._spec
        if spec.never_complete:
            return FULL * (layout.outside + layout.layer)
        if spec.sharded:
            return FULL * layout.elements * (not self._on_cpu)
        return self._average  # takes the place of weights

    def _step(self, trace: Trace) -> dict[str, int]:
        """Return the parts of the largest sum in a step: in a backward, or when ZeRO reduces gradients after it."""
        layout, zero, again = self._layout, self._zero, self._passes > 1
        # FSDP2 reduces no gradient before the last backward of a step
        unreduced = FULL * layout.trained if again and not zero else self.gradients
        grows = not again and (self._spec.sharded or self._spec.one_process)  # DDP has its buckets from the start
        parts = peak_of(trace, unreduced / max(1, layout.trained) if grows else 0)
        parts["gradients"] += unreduced * again
        # ZeRO-1 and 2 fill the bucket after the peak. A GPU has reserved it.
        parts["buffers"] = self._bucket * (zero in (0, 3) or not self._on_cpu)
        if zero == 3:
            large = layout.elements - layout.small
            parts["buffers"] += self._width * (min(large, gathered_limit(layout.elements) + AHEAD) + min(large, AHEAD))
        elif "parameters" in self._spec.shards:  # outside of layers, a layer as it arrives and as it is used, gradients
            parts["buffers"] += self._width * (layout.outside + 2 * layout.layer) + FULL * layout.layer
        copy = FULL * min(layout.trained, BUCKET) if zero else 0
        if self._spec.sharded and not self._spec.never_complete:  # all weights are gathered for an average
            copy = max(copy, self._average)
        if copy and self.gradients + self._bucket + copy > sum(parts.values()):
            parts = {"activations": 0, "logits": 0, "gradients": self.gradients, "buffers": self._bucket + copy}
        parts["buffers"] += layout.buffers
        return {name: round(size) for name, size in parts.items()}

    def _sent(self) -> int:
        """Return the bytes over the network in a step. An all-reduce sends twice as much as a reduce-scatter."""
        layout, gathered = self._layout, self._layout.elements
        average = self._average * (not self._spec.never_complete)
        if "parameters" in self._spec.shards:  # for the forward, and again for the backward unless they are kept
            again = (
                max(0, layout.elements - gathered_limit(layout.elements))
                if self._zero
                else layout.elements - layout.outside
            )
            gathered, reduced = self._passes * (layout.elements + again), FULL * layout.trained
        else:
            reduced = 2 * FULL * layout.trained
        reduced *= self._passes if self._zero > 1 else 1
        sent = reduced + (self._width * gathered + average if self._spec.sharded else 0)
        # copies add up the gradients of their parts by an all-reduce
        between = 2 * FULL * layout.trained / self._parts * (self.copies - 1) / self.copies
        return round(sent * (self._parts - 1) / self._parts + between)


def configurations(
    tracer: Tracer, ranks: Sequence[int], precisions: Sequence[str], copies: int = 1
) -> Iterator[Configuration]:
    """Yield every way to run a recipe. Engines are in the order of what they send, least first.

    Args:
        copies: of the model, which are planned besides for FSDP2 on ranks that can hold so many.
    """
    specs = [spec for spec in ENGINES.values() if tracer.layout.shardable or not spec.sharded]
    ways = product(specs, (False, True), ranks, precisions, tracer.checkpointing)
    for spec, offload, number, precision, checkpointing in sorted(ways, key=lambda way: ranks.index(way[2])):
        if (spec.zero_stage == 3 and not tracer.on_cpu) if offload else spec.one_process == (number == 1):
            yield Configuration(tracer, spec, offload, number, precision, checkpointing)
            if spec.replicates and copies > 1 and number % copies == 0 and number > copies:
                yield Configuration(tracer, spec, offload, number, precision, checkpointing, copies)
