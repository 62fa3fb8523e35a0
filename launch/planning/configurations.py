"""Every way to run the recipe, each with the memory and the traffic of one rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from launch.planning.corpus import Data
from launch.planning.gathering import REPLAYS
from launch.planning.model import Made, Sketch, make
from launch.planning.rehearsal import Arithmetic, Device, Shapes, Timeline, most, most_in_evaluation, rehearse
from launch.planning.replay import Peak
from launch.planning.states import ENGINES, FULL, Precision, Setup, States, ZeroSettings, part_of, rows_of, states
from trainer.errors import UsageError
from trainer.recipe import Recipe

if TYPE_CHECKING:
    from trainer.tasks.base import Task

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


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
        self._timelines: dict[tuple[Arithmetic, bool], Timeline] = {}
        self._peaks: dict[tuple[Any, ...], tuple[Peak, int]] = {}

    @cached_property
    def made(self) -> Made:
        return make(self.task, self.device, "fp32", checkpointing=False)

    @property
    def sketch(self) -> Sketch:
        return self.made.sketch

    @cached_property
    def can_checkpoint(self) -> bool:
        try:
            make(self.task, "gpu", "fp32", checkpointing=True)
        except UsageError:
            return False
        return True

    @cached_property
    def shapes(self) -> Shapes:
        """Of the candidates the micro-batch that needs most memory."""
        found = self.data.largest
        if len(found) == 1:
            return found[0]
        return max(found, key=lambda shapes: most(self._rehearsed(self.made, shapes, "fp32")))

    @cached_property
    def evaluation(self) -> int:
        """Bytes that an evaluation batch takes besides the weights."""
        return most_in_evaluation(self.made.objective, self._evaluation_shapes(), self.device)

    def configurations(self, ranks: Sequence[int], precisions: Sequence[Precision]) -> Iterator[Configuration]:
        for world in ranks:
            for engine in ENGINES if world > 1 else ("single", "zero3"):
                for offload in {"zero3": (False, True)}.get(engine, (False,)):
                    if world == 1 and engine == "zero3" and not offload:
                        continue  # cut into one part: only worth it with the rest on the host
                    if engine == "single" and world > 1:
                        continue
                    for precision in precisions:
                        for checkpointing in (False, True) if self.can_checkpoint else (False,):
                            setup = Setup(engine, world, precision, self.device, offload, checkpointing, self.zero)
                            if not (setup.offload and self.device == "cpu"):
                                yield self._configuration(setup)

    def _configuration(self, setup: Setup) -> Configuration:
        key = (setup.engine, setup.ranks, setup.arithmetic, setup.offload, setup.checkpointing)
        if key not in self._peaks:
            accumulation = micro_batches(self.recipe, setup.ranks)
            average = self.recipe.optim.averaging.kind == "ema"
            replay = REPLAYS[setup.engine](self.sketch, setup, accumulation, average)
            peak = replay.play(self._timeline(setup.arithmetic, setup.checkpointing))
            self._peaks[key] = peak, replay.resident()
        peak, resident = self._peaks[key]
        live, logits = most(self._timeline(setup.arithmetic, setup.checkpointing))
        whole = FULL * self.sketch.all_elements
        # a sharded engine's whole copy comes to the device; a moving average's place is taken from the raw weights
        visiting = whole if self._copies(setup) else 0
        return Configuration(
            setup,
            states(self.sketch, setup),
            live - logits,
            logits,
            peak,
            self._start(setup),
            resident + visiting + self.evaluation,
            sent(self.sketch, setup, micro_batches(self.recipe, setup.ranks), peak, self.recipe),
        )

    def _copies(self, setup: Setup) -> bool:
        averaged = self.recipe.optim.averaging.kind == "ema"
        return self.device == "gpu" if setup.sharded else averaged

    def _start(self, setup: Setup) -> int:
        """Sharded engines are given a copy of the whole model, made on the device."""
        whole = FULL * self.sketch.all_elements
        if not setup.sharded:
            return whole + FULL * self.sketch.trained_elements
        kept = states(self.sketch, setup)
        if setup.engine in ("zero1", "zero2"):  # the weights stand beside the flat copy that is made of them
            laid_out = (
                setup.width * self.sketch.all_elements + kept.parameters + kept.optimizer // (1 + self.sketch.moments)
            )
            return max(2 * whole, laid_out) if self.device == "gpu" else whole + max(whole, laid_out)
        return 2 * whole

    def _timeline(self, arithmetic: Arithmetic, checkpointing: bool) -> Timeline:
        key = (arithmetic, checkpointing)
        if key not in self._timelines:
            plain = arithmetic == "fp32" and not checkpointing
            made = self.made if plain else make(self.task, self.device, arithmetic, checkpointing=checkpointing)
            self._timelines[key] = self._rehearsed(made, self.shapes, arithmetic)
        return self._timelines[key]

    def _rehearsed(self, made: Made, shapes: Shapes, arithmetic: Arithmetic) -> Timeline:
        return rehearse(made.objective, made.trained, made.units, shapes, self.device, arithmetic)

    def _evaluation_shapes(self) -> Shapes:
        """The training's largest micro-batch with as many rows as an evaluation batch may have."""
        widest = max(self.shapes[name][1] for name in self.task.inputs)
        before = self.shapes[self.task.inputs[0]][0]
        rows = max(1, self.recipe.evaluation.tokens_per_batch // widest)
        return {name: (max(1, shape[0] * rows // before), *shape[1:]) for name, shape in self.shapes.items()}


def micro_batches(recipe: Recipe, ranks: int) -> int:
    """Forwards of each rank in a step, as `trainer.compose` computes them."""
    return math.ceil(math.ceil(recipe.data.lanes / ranks) / recipe.loop.fuse_lanes)


def sent(sketch: Sketch, setup: Setup, accumulation: int, peak: Peak, recipe: Recipe) -> int:
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
        rows = {
            block: w * sum(rows_of(p, w) for p in sketch.parameters if p.block == block) for block in _blocks(sketch)
        }
        each = setup.width * (rows[None] + 2 * sum(n for block, n in rows.items() if block is not None))
        total = ring * (accumulation * each + FULL * w * sum(rows_of(p, w) for p in sketch.trained))
    if recipe.optim.averaging.kind == "ema":  # whole weights at each step
        total += (2 if setup.engine in ("zero1", "zero2") else 1) * ring * FULL * sketch.all_elements
    return round(total)


def _blocks(sketch: Sketch) -> list[int | None]:
    return [None, *range(sketch.blocks)]
