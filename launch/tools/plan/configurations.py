"""Every way to run a recipe, with the memory and the traffic of one rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from launch.tools.plan.activation_trace import Shapes, Trace, peak_of, trace_evaluation, trace_micro_batch
from launch.tools.plan.engine_memory import FULL, RankMemory, Setting
from launch.tools.plan.engines import ENGINES, Engine
from launch.tools.plan.layout import FakeModel, fake_model
from trainer.data_parallel import DataParallel
from trainer.errors import UsageError
from trainer.task.base import Task


@dataclass
class Configuration:
    """One way to run a recipe, as in the JSON document. Bytes are those of the rank that needs most.

    `peak` is the largest of `step` (training), `start` (the engine is set up) and `evaluation`. docs/plan.md describes
    the others.
    """

    engine: str
    offload: bool
    ranks: int
    precision: str
    activation_checkpointing: bool
    parameters: int
    gradients: int
    optimizer: int
    host: int
    activations: int
    logits: int
    step_parts: dict[str, int]
    step: int
    start: int
    evaluation: int
    peak: int
    sent: int
    config: str | None
    fits: bool | None = None
    hours: float | None = None

    @property
    def title(self) -> str:
        return self.engine + (" offload" if self.offload else "")


class Planner:
    """Trace the largest micro-batch of a recipe, and compute its memory under every engine.

    Raises:
        UsageError: the model of the recipe cannot be built, or its memory cannot be planned.
    """

    def __init__(self, task: Task, candidates: Sequence[Shapes], *, on_cpu: bool) -> None:
        recipe = self.recipe = task.recipe
        if not on_cpu and getattr(recipe.model, "attention", None) == "auto":  # what auto is on a GPU
            model = recipe.model.model_copy(update={"attention": "sdpa"})
            task.recipe = recipe.model_copy(update={"model": model})
        self.task, self.on_cpu = task, on_cpu
        self.fake = fake_model(task, on_cpu=on_cpu)
        self.layout = self.fake.layout
        self._checkpointing: FakeModel | None = None
        with contextlib.suppress(UsageError):  # not every model can
            self._checkpointing = fake_model(task, on_cpu=on_cpu, checkpointing=True)
        self.can_checkpoint = self._checkpointing is not None
        traces = [(trace_micro_batch(self.fake, s, autocast=False), s) for s in candidates]
        largest, self.shapes = max(traces, key=lambda pair: peak_of(pair[0]))
        self._traces: dict[tuple[bool, bool, bool], Trace] = {(False, False, False): largest}
        self._evaluation = peak_of(trace_evaluation(self.fake, self._evaluation_shapes()))[0]

    def configurations(self, ranks: Sequence[int], precisions: Sequence[str]) -> Iterator[Configuration]:
        checkpointings = (False, True) if self.can_checkpoint else (False,)
        for way in product(ranks, ENGINES, precisions, checkpointings):
            number, engine, *_ = way
            if engine.alone in (None, number == 1) and not (engine.offload and self.on_cpu):
                yield self._configuration(*way)

    def _configuration(self, ranks: int, engine: Engine, precision: str, checkpointing: bool) -> Configuration:
        layout, weights = self.layout, FULL * self.layout.elements
        averaged = self.recipe.optim.averaging.kind == "ema"
        half = engine.sharded and precision != "fp32"
        setting = Setting(ranks, self.on_cpu, 2 if half else FULL, self._passes(ranks), averaged, engine.offload)
        rank = engine.memory(layout, setting)
        if averaged and engine.sharded:  # the weights are gathered after the update
            rank = replace(rank, after=max(rank.after, rank.resident + weights))
        trace = self._trace(half, precision != "fp32" and not half, checkpointing)
        total, logits = peak_of(trace)
        kept = self._kept(engine, rank, precision)
        step = rank.peak(trace)
        step["buffers"] += layout.buffers
        step |= {name: size for name, size in kept.items() if size}
        # the copy of a sharded engine is moved to the GPU; a moving average takes the place of weights that are kept
        moved = weights if (not self.on_cpu if engine.sharded else averaged) else 0
        peaks = [sum(step.values()), rank.setup + kept["libraries"]]
        peaks.append(sum(kept.values()) + layout.buffers + rank.resident + moved + self._evaluation)
        return Configuration(
            engine=engine.name,
            offload=engine.offload,
            ranks=ranks,
            precision=precision,
            activation_checkpointing=checkpointing,
            parameters=rank.parameters,
            gradients=rank.gradients,
            optimizer=rank.optimizer,
            host=rank.host,
            activations=total - logits,
            logits=logits,
            step_parts=step,
            step=peaks[0],
            start=peaks[1],
            evaluation=peaks[2],
            peak=max(peaks),
            sent=round(rank.sent),
            config=engine.config(precision, on_cpu=self.on_cpu),
        )

    def _kept(self, engine: Engine, rank: RankMemory, precision: str) -> dict[str, int]:
        """Return the bytes that a rank keeps all the time. Those of libraries are measured (docs/plan.md)."""
        averaged, cpu = self.recipe.optim.averaging.kind == "ema", self.on_cpu
        return {
            "parameters": rank.parameters,
            "optimizer": rank.optimizer,
            "average": FULL * self.layout.elements if averaged else 0,
            "copy": rank.host if engine.sharded and cpu else 0,
            "libraries": 1_000_000 * (50 + 40 * engine.sharded + 130 * (precision == "bf16")) if cpu else 0,
        }

    def lane_memory(self) -> int:
        """Return the bytes that a recurrent model keeps for all lanes between two steps."""
        rows = self.shapes[self.task.inputs[0]][0] // self.recipe.loop.fuse_lanes
        memory = self.task.memory(1)
        return 0 if memory is None else self.recipe.data.lanes * rows * memory.nbytes

    def _passes(self, ranks: int) -> int:
        """Return the forwards and backwards of rank zero in a step. No rank has more."""
        lanes = DataParallel(0, ranks).lane_groups(self.recipe.data.lanes, self.recipe.loop.fuse_lanes)
        return len(lanes) * (1 if self.recipe.optim.adversarial.kind == "none" else 2)

    def _trace(self, half: bool, autocast: bool, checkpointing: bool) -> Trace:
        key = (half, autocast, checkpointing)
        if key not in self._traces:
            fake = self._checkpointing if checkpointing else self.fake
            if half or fake is None:
                fake = fake_model(self.task, on_cpu=self.on_cpu, half=half, checkpointing=checkpointing)
            self._traces[key] = trace_micro_batch(fake, self.shapes, autocast=autocast)
        return self._traces[key]

    def _evaluation_shapes(self) -> Shapes:
        """Return the shapes of the largest micro-batch with as many rows as an evaluation batch may have."""
        widest = max(self.shapes[name][1] for name in self.task.inputs)
        before = self.shapes[self.task.inputs[0]][0]
        rows = max(1, self.recipe.evaluation.tokens_per_batch // widest)
        return {name: (max(1, shape[0] * rows // before), *shape[1:]) for name, shape in self.shapes.items()}
