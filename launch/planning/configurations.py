"""Every way to run the recipe, each with the memory and the traffic of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from launch.planning.corpus import Data
from launch.planning.gathering import REPLAYS
from launch.planning.model import Made, Sketch, make
from launch.planning.rehearsal import Arithmetic, Device, Shapes, Timeline, most, most_in_evaluation, rehearse
from launch.planning.replay import Peak
from launch.planning.states import ENGINES, FULL, Precision, Setup, States, ZeroSettings, part_of, rows_of, states
from trainer.data.loader import owned_lanes
from trainer.errors import UsageError
from trainer.recipe import Recipe

if TYPE_CHECKING:
    from trainer.task.base import Task


@dataclass(frozen=True)
class Configuration:
    """One way to run; bytes of the rank that needs most.

    Attributes:
        activations, logits: of a micro-batch, when both together are most.
        step: the peak of a training step.
        start: while the engine is set up.
        evaluation: while `validation` is evaluated.
        sent: over the network, per optimizer step.
    """

    setup: Setup
    states: States
    activations: int
    logits: int
    step: Peak
    start: int
    evaluation: int
    sent: int

    @property
    def peak(self) -> int:
        """The most that the device must hold at any time."""
        return max(self.step.total, self.start, self.evaluation)

    @property
    def when(self) -> str:
        """What the peak is reached in."""
        found = {"step": self.step.total, "start": self.start, "evaluation": self.evaluation}
        return max(found, key=found.__getitem__)


class Planner:
    """Rehearses each kind of micro-batch once and plays it under every engine.

    Raises:
        UsageError: the model of the recipe cannot be made.
    """

    def __init__(self, recipe: Recipe, task: Task, data: Data, device: Device) -> None:
        self.recipe, self.task, self.data, self.device = recipe, task, data, device
        if device == "gpu" and getattr(recipe.model, "attention", None) == "auto":  # what auto is on a GPU
            model = recipe.model.model_copy(update={"attention": "sdpa"})
            task.recipe = recipe.model_copy(update={"model": model})
        self.zero = ZeroSettings.of_rankzero()
        self.made = make(task, device, "fp32", checkpointing=False)
        self.sketch = self.made.sketch
        self._rehearsals: dict[tuple[Arithmetic, bool], tuple[Timeline, int, int]] = {}
        self._peaks: dict[tuple[Any, ...], tuple[Peak, int]] = {}

    @cached_property
    def _checkpointing(self) -> Made | None:
        try:
            return make(self.task, self.device, "fp32", checkpointing=True)
        except UsageError:
            return None

    @property
    def can_checkpoint(self) -> bool:
        return self._checkpointing is not None

    @cached_property
    def shapes(self) -> Shapes:
        """Of the candidates the micro-batch that needs most memory."""
        found = [(shapes, self._rehearsed(self.made, shapes, "fp32")) for shapes in self.data.largest]
        shapes, self._rehearsals["fp32", False] = max(found, key=lambda pair: pair[1][1:])
        return shapes

    @cached_property
    def evaluation(self) -> int:
        """Bytes that an evaluation batch takes besides the weights."""
        return most_in_evaluation(self.made.objective, self._evaluation_shapes(), self.device)

    def configurations(self, ranks: Sequence[int], precisions: Sequence[Precision]) -> Iterator[Configuration]:
        checkpointings = (False, True) if self.can_checkpoint else (False,)
        for world in ranks:
            for (engine, offload), precision, checkpointing in product(self._ways(world), precisions, checkpointings):
                yield self._configuration(
                    Setup(engine, world, precision, self.device, offload, checkpointing, self.zero)
                )

    def _ways(self, ranks: int) -> Iterator[tuple[str, bool]]:
        """Engines, and whether they offload. On one rank ZeRO is only worth it with the rest on the host."""
        for engine in ENGINES:
            if (engine == "single") == (ranks == 1):
                yield engine, False
            if engine == "zero3" and self.device == "gpu":
                yield engine, True

    def _configuration(self, setup: Setup) -> Configuration:
        accumulation = micro_batches(self.recipe, setup.ranks)
        timeline, live, logits = self._rehearsal(setup.arithmetic, setup.checkpointing)
        key = (setup.engine, setup.ranks, setup.arithmetic, setup.offload, setup.checkpointing)
        if key not in self._peaks:  # bf16 and fp16 need the same
            replay = REPLAYS[setup.engine](self.sketch, setup, accumulation, self._averaged)
            self._peaks[key] = replay.play(timeline), replay.resident()
        peak, resident = self._peaks[key]
        libraries = held_by_libraries(setup)
        if libraries:
            parts = {**peak.parts, "libraries": libraries}
            peak = replace(peak, total=peak.total + libraries, parts=parts)
        whole = FULL * self.sketch.all_elements
        # a sharded engine's whole copy comes to the device; a moving average's place is taken from the raw weights
        visiting = whole if self._copies(setup) else 0
        return Configuration(
            setup,
            states(self.sketch, setup),
            live - logits,
            logits,
            peak,
            self._start(setup) + libraries,
            resident + visiting + self.evaluation + libraries,
            sent(self.sketch, setup, accumulation, peak, self._averaged),
        )

    @property
    def _averaged(self) -> bool:
        return self.recipe.optim.averaging.kind == "ema"

    def _copies(self, setup: Setup) -> bool:
        return self.device == "gpu" if setup.sharded else self._averaged

    def _start(self, setup: Setup) -> int:
        """The whole model with the gradient that tells what the loss does not depend on, before it is cut up; on a CPU
        with the copy that is evaluated."""
        whole = FULL * self.sketch.all_elements
        begun = whole + FULL * self.sketch.trained_elements
        if not setup.sharded:
            return begun
        kept, laid_out = states(self.sketch, setup), 0
        if setup.engine in ("zero1", "zero2"):  # the weights stand beside the flat copy that is made of them
            laid_out = (
                setup.width * self.sketch.all_elements + kept.parameters + kept.optimizer // (1 + self.sketch.moments)
            )
        return max(begun, laid_out) + (whole if self.device == "cpu" else 0)

    def _rehearsal(self, arithmetic: Arithmetic, checkpointing: bool) -> tuple[Timeline, int, int]:
        """The timeline of a micro-batch, and the most that lives in it: all, and what of it are logits."""
        shapes, key = self.shapes, (arithmetic, checkpointing)
        if key not in self._rehearsals:
            made = self._checkpointing if checkpointing else self.made
            if arithmetic == "half" or made is None:
                made = make(self.task, self.device, arithmetic, checkpointing=checkpointing)
            self._rehearsals[key] = self._rehearsed(made, shapes, arithmetic)
        return self._rehearsals[key]

    def _rehearsed(self, made: Made, shapes: Shapes, arithmetic: Arithmetic) -> tuple[Timeline, int, int]:
        timeline = rehearse(made.objective, made.trained, made.units, shapes, self.device, arithmetic)
        return timeline, *most(timeline)

    def _evaluation_shapes(self) -> Shapes:
        """The training's largest micro-batch with as many rows as an evaluation batch may have."""
        widest = max(self.shapes[name][1] for name in self.task.inputs)
        before = self.shapes[self.task.inputs[0]][0]
        rows = max(1, self.recipe.evaluation.tokens_per_batch // widest)
        return {name: (max(1, shape[0] * rows // before), *shape[1:]) for name, shape in self.shapes.items()}


def held_by_libraries(setup: Setup) -> int:
    """Bytes that a rank on a CPU takes besides tensors, measured (docs/plan.md): buffers of gloo and DeepSpeed; in bf16
    oneDNN's kernels and the weights that it lays out anew. A GPU's are left out of its usable memory.
    """
    if setup.device == "gpu":
        return 0
    return 1_000_000 * (50 + 40 * setup.sharded + 130 * (setup.precision == "bf16"))


def micro_batches(recipe: Recipe, ranks: int) -> int:
    """Forwards of rank zero in a step, which has no fewer than others."""
    return len(owned_lanes(recipe.data.lanes, 0, ranks, recipe.loop.fuse_lanes))


def sent(sketch: Sketch, setup: Setup, accumulation: int, peak: Peak, averaged: bool) -> int:
    """Bytes that one rank sends in an optimizer step, by rings: an all-gather or reduce-scatter of B bytes sends
    (W-1)/W B, an all-reduce twice that. Gradients go in fp32 under every engine.
    """
    w = setup.ranks
    ring = (w - 1) / w
    gradients = FULL * sketch.trained_elements
    kept = states(sketch, setup)
    if setup.engine == "single":
        return 0
    if setup.engine == "ddp":  # once a step, and the buffers with it
        return round(2 * ring * gradients) + sketch.buffers
    if setup.engine in ("zero1", "zero2"):  # DeepSpeed all-reduces, then gathers the weights that each rank has stepped
        times = accumulation if setup.engine == "zero2" else 1
        total = times * 2 * ring * gradients + ring * kept.parameters
    elif setup.engine == "zero3":
        scattered = FULL * w * sum(part_of(p, w) for p in sketch.trained)
        small = setup.width * sum(p.size for p in sketch.parameters if p.size <= setup.zero.persistent)
        total = accumulation * ring * (peak.gathered + scattered) + ring * small
    else:
        rows = {block: w * sum(rows_of(p, w) for p in inside) for block, inside in sketch.gathered.items()}
        each = setup.width * (rows[None] + 2 * sum(n for block, n in rows.items() if block is not None))
        total = ring * (accumulation * each + FULL * w * sum(rows_of(p, w) for p in sketch.trained))
    if averaged:  # whole weights at each step
        total += (2 if setup.engine in ("zero1", "zero2") else 1) * ring * FULL * sketch.all_elements
    return round(total)
