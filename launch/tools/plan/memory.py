"""Every way to run a recipe, with the memory and the traffic of one rank.

Model states follow from what an engine shards. Gradients and buffers of a step are a few terms, listed in docs/plan.md.
`benchmarks/plan_memory.py` compares both with real runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from launch.tools.plan.trace import Tracer, peak_of
from trainer.data_parallel import DataParallel
from trainer.engine.engines import BUCKET
from trainer.engine_specs import ENGINES, EngineSpec, State

PRECISIONS = ("fp32", "bf16", "fp16")
FULL = 4  # bytes of an fp32 value
AHEAD, KEPT = 50_000_000, 500_000_000  # elements that ZeRO-3 gathers ahead and keeps (DeepSpeed's defaults)
LIBRARIES, LIBRARIES_BF16 = 50_000_000, 75_000_000  # bytes of a CPU rank besides tensors, and more in bf16: measured
COLUMNS = (
    *("engine", "offload", "ranks", "precision", "activation_checkpointing", "parameters", "gradients", "optimizer"),
    *("host", "activations", "logits", "step_parts", "step", "start", "evaluation", "peak", "sent", "config"),
    *("fits", "hours"),
)


class Configuration:
    """One way to run a recipe. Sizes are bytes of the rank that needs most.

    Padding of parts and step counts of the optimizer are not counted: less than 1% of all but the smallest models.
    """

    fits: bool | None = None
    hours: float | None = None

    def __init__(
        self, tracer: Tracer, spec: EngineSpec, *, offload: bool, ranks: int, precision: str, checkpointing: bool
    ) -> None:
        recipe, layout = tracer.task.recipe, tracer.layout
        self.engine, self.offload, self.ranks, self.precision = spec.name, offload, ranks, precision
        self.activation_checkpointing, self.title = checkpointing, spec.name + (" offload" if offload else "")
        self._spec, self._layout, self._on_cpu, self._zero = spec, layout, tracer.on_cpu, spec.zero_stage or 0
        lanes = DataParallel(0, ranks).lane_groups(recipe.data.lanes, recipe.loop.fuse_lanes)
        self._passes = len(lanes) * (1 if recipe.optim.adversarial.kind == "none" else 2)  # forwards in a step
        self._averaged = recipe.optim.averaging.kind == "ema"
        half = spec.sharded and precision != "fp32"  # engines without sharding use autocast
        self._width = 2 if half else FULL  # bytes of a weight in the forward
        autocast = precision != "fp32" and not half
        self._trace = tracer.trace(half=half, autocast=autocast, checkpointing=checkpointing)
        self._evaluated = tracer.evaluation
        peak = peak_of(self._trace)
        self.activations, self.logits = round(peak["activations"]), round(peak["logits"])
        self._set_states()

    def _set_states(self) -> None:
        layout, zero = self._layout, self._zero
        self.parameters = (self._width if zero else FULL) * layout.elements // self._sharing("parameters")
        self.gradients = (self._width if zero == 1 else FULL) * layout.trained // self._sharing("gradients")
        self.optimizer = FULL * layout.trained * (layout.moments + bool(zero)) // self._sharing("optimizer")
        self.host = FULL * layout.elements + layout.buffers if self._spec.sharded else 0
        if self.offload:  # a gradient is on the host twice: as it is added up, and for the optimizer
            self.host += self.parameters + 2 * self.gradients + self.optimizer
            self.parameters = self.gradients = self.optimizer = 0
        self.parameters += self._width * layout.small if zero == 3 else 0

    def _sharing(self, state: State) -> int:
        """Return the number of ranks that share a state."""
        return self.ranks if state in self._spec.shards else 1

    def row(self) -> dict[str, Any]:
        """Return the configuration as in the JSON document. docs/plan.md describes the columns."""
        return {name: getattr(self, name) for name in COLUMNS}

    @cached_property
    def config(self) -> str | None:
        """The shipped Accelerate config, with options of `rankzero train`. None: there is none."""
        spec = self._spec
        if spec.sharded and self.precision != ("fp32" if self._on_cpu else "bf16"):
            return None
        if spec.sharded or self.precision == "fp32":
            return (spec.cpu_config if self._on_cpu else spec.gpu_config) + ("_offload" if self.offload else "")
        ddp = ENGINES["ddp"]
        name = f"{ddp.cpu_config if self._on_cpu else ddp.gpu_config}_{self.precision}"
        return f"{name} --nproc 1" if spec.one_process else name

    @cached_property
    def kept(self) -> dict[str, int]:
        """What is there all the time besides activations, gradients and buffers."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer,
            "average": FULL * self._layout.elements * self._averaged,
            "copy": self.host if self._on_cpu else 0,
            "libraries": (LIBRARIES + LIBRARIES_BF16 * (self.precision == "bf16")) * self._on_cpu,
        }

    @cached_property
    def step_parts(self) -> dict[str, int]:
        """The parts of the largest sum in a step: in a backward, or when ZeRO reduces gradients after it."""
        layout, again = self._layout, self._passes > 1
        # FSDP2 reduces no gradient before the last backward of a step
        unreduced = FULL * layout.trained if again and not self._zero else self.gradients
        grows = not again and (self._spec.sharded or self._spec.one_process)  # DDP has its buckets from the start
        parts = peak_of(self._trace, unreduced / max(1, layout.trained) if grows else 0)
        parts["gradients"] += unreduced * again
        # ZeRO-1 and 2 fill the bucket after the peak. A GPU has reserved it, a CPU pays for it as it is written.
        parts["buffers"] = self._gathered + self._bucket * (self._zero in (0, 3) or not self._on_cpu)
        copy = FULL * min(layout.trained, BUCKET) if self._zero else 0
        if self._averaged and self._spec.sharded:  # all weights are gathered after the update
            copy = max(copy, FULL * layout.elements)
        if copy and self.gradients + self._bucket + copy > sum(parts.values()):
            parts = {"activations": 0, "logits": 0, "gradients": self.gradients, "buffers": self._bucket + copy}
        parts["buffers"] += layout.buffers
        return {**{name: round(size) for name, size in parts.items()}, **{k: v for k, v in self.kept.items() if v}}

    @cached_property
    def step(self) -> int:
        return sum(self.step_parts.values())

    @cached_property
    def start(self) -> int:
        """The whole model and one gradient, before they are sharded."""
        copies = 2 if self._spec.sharded and self._on_cpu else 1
        return FULL * (self._layout.elements * copies + self._layout.trained) + self.kept["libraries"]

    @cached_property
    def evaluation(self) -> int:
        """An evaluation. The copy of a sharded engine is moved to the GPU, and a moving average replaces weights."""
        moved = not self._on_cpu if self._spec.sharded else self._averaged
        resident = {0: self._bucket, 3: self._bucket + self.gradients}.get(self._zero, 0)
        size = resident + self._layout.buffers + FULL * self._layout.elements * moved
        return sum(self.kept.values()) + self._evaluated + size

    @cached_property
    def peak(self) -> int:
        return max(self.step, self.start, self.evaluation)

    @cached_property
    def _bucket(self) -> int:
        """Gradients that are reduced together: DDP keeps all of them."""
        if not self._spec.sharded:
            return 0 if self._spec.one_process else FULL * self._layout.trained
        elements = min(self._layout.trained, BUCKET) if self._on_cpu else BUCKET
        return (FULL if self._zero == 3 else self._width) * elements * bool(self._zero)

    @cached_property
    def _gathered(self) -> int:
        """Parts of other ranks in a forward and backward."""
        layout, width = self._layout, self._width
        if self._zero == 3:
            large = layout.elements - layout.small
            return width * (min(large, KEPT + AHEAD) + min(large, AHEAD))
        if "parameters" not in self._spec.shards:
            return 0
        # what is outside of layers, a layer as it arrives and as it is used, and its gradients
        return width * (layout.outside + 2 * layout.layer) + FULL * layout.layer

    @cached_property
    def sent(self) -> int:
        """Bytes over the network in a step. An all-reduce sends twice as much as a reduce-scatter."""
        layout, sharded = self._layout, "parameters" in self._spec.shards
        reduced = FULL * layout.trained * (1 if sharded else 2) * (self._passes if self._zero > 1 else 1)
        gathered = layout.elements
        if sharded:  # for the forward, and again for the backward unless they are kept
            again = max(0, layout.elements - KEPT) if self._zero else layout.elements - layout.outside
            gathered = self._passes * (layout.elements + again)
        sent = reduced + (self._width * gathered if self._spec.sharded else 0)
        sent += FULL * layout.elements * (self._averaged and self._spec.sharded)
        return round(sent * (self.ranks - 1) / self.ranks)


def configurations(tracer: Tracer, ranks: Sequence[int], precisions: Sequence[str]) -> Iterator[Configuration]:
    """Yield every way to run a recipe. Engines are in the order of what they send, least first."""
    for number, spec, offload, precision, checkpointing in product(
        ranks, ENGINES.values(), (False, True), precisions, tracer.checkpointing
    ):
        if (spec.zero_stage == 3 and not tracer.on_cpu) if offload else spec.one_process == (number == 1):
            yield Configuration(
                tracer, spec, offload=offload, ranks=number, precision=precision, checkpointing=checkpointing
            )
