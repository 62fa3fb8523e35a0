"""How many lanes of a rank are one forward. With `loop.fuse_lanes: auto` a GPU measures it once, before the first step.

Measured is the forward and backward of the largest micro-batch that the recipe allows, on the model that the engine has
prepared. What the optimizer and a moving average will need is added. A number of lanes is tried only where those before
predict that it fits, on all ranks: a rank that ran out of memory would leave the others in a collective.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from trainer.data_parallel import fusable
from trainer.engine.runtime import Runtime
from trainer.engine.state import TrainingState
from trainer.engine.step import Stepper
from trainer.errors import OutOfMemory, ran_out_of_memory
from trainer.files import read_json, write_json
from trainer.recipe import Recipe
from trainer.rundir import RunDir

log = logging.getLogger("rankzero")

USABLE = 0.9  # of the memory: an allocator cannot fill its last pages, and the shapes of micro-batches differ
GIB = 2**30


class DeviceMemory(Protocol):
    """The memory of a device."""

    name: str

    def start(self) -> int:
        """Free what no tensor uses. Begin to measure the peak. Return the bytes of all tensors."""

    def peak(self) -> int:
        """Return the most bytes of tensors since `start`."""

    def available(self) -> int:
        """Return the bytes that tensors of this process may take, with those of today."""


class CudaMemory:
    """The memory of a GPU, as torch's allocator counts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.name = torch.cuda.get_device_name(device)

    def start(self) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def available(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device)


def memory_of(device: torch.device) -> DeviceMemory | None:
    """Return the memory of a GPU. None for a CPU, which gains nothing from fused lanes."""
    return CudaMemory(device) if device.type == "cuda" else None


def lanes_in_a_forward(recipe: Recipe, run: RunDir, runtime: Runtime, stepper: Stepper, state: TrainingState) -> int:
    """Return how many lanes of a rank are one forward. With `auto`, set the stepper to it. All ranks.

    The first start of a run records its choice in the manifest. Later ones keep it: the largest number up to it that
    divides their lanes of a rank.

    Raises:
        OutOfMemory: a rank ran out of memory under an engine that shards. The next start knows what fits.
    """
    if recipe.loop.fuse_lanes != "auto":
        return recipe.loop.fuse_lanes
    allowed = fusable(recipe.data.lanes, runtime.world)
    choice = runtime.on_main(run.fused_lanes)
    if choice is None:
        choice = _measured(allowed, runtime, stepper, state)
        runtime.on_main(lambda: write_json(run.manifest, {**(read_json(run.manifest) or {}), "fuse_lanes": choice}))
    lanes = max(n for n in allowed if n <= choice["lanes"])
    if runtime.main:
        _report(choice, lanes, allowed[-1], runtime.world)
    stepper.fuse(lanes)
    return lanes


def _report(choice: dict[str, Any], lanes: int, own: int, ranks: int) -> None:
    text = f"loop.fuse_lanes=auto: {lanes} of the {own} lanes of a rank in one forward"
    if choice.get("ranks") != ranks and choice["lanes"] > 1:
        log.warning(
            "%s, of at most %d that were measured on %s ranks. On %d ranks the steps have the same rows and the same "
            "denominator, and other dropout masks",
            *(text, choice["lanes"], choice.get("ranks", "other"), ranks),
        )
    elif "peak_bytes" in choice:
        size, most = choice["peak_bytes"] / GIB, choice["usable_bytes"] / GIB
        log.info("%s (the largest micro-batch takes %.2f of %.2f GiB)", text, size, most)
    else:
        log.info("%s", text)


def _measured(allowed: Sequence[int], runtime: Runtime, stepper: Stepper, state: TrainingState) -> dict[str, Any]:
    """Return the choice for the manifest. All ranks. It is 1 where there is nothing to choose.

    It is 1, too, after a rank ran out of memory in a micro-batch of one lane.
    """
    memory = memory_of(runtime.device)
    facts = {"ranks": runtime.world, "device": runtime.device.type if memory is None else memory.name}
    if memory is None or stepper.splits > 1 or len(allowed) == 1:
        return {"lanes": 1, **facts}
    if runtime.main:
        log.info("loop.fuse_lanes=auto: measuring which of %s lanes in one forward fit the memory …", allowed)
    trial = _Trial(memory, stepper, facts)
    stepper.warm_up()
    trial(0)  # libraries have allocated their workspaces and buffers
    usable = int(USABLE * memory.available()) - runtime.engine.moment_bytes() - state.average_bytes()
    lanes = largest_that_fits(allowed, trial, usable, lambda fits: runtime.sum([int(not fits)])[0] == 0)
    peak = trial.peaks[lanes]
    return {"lanes": lanes, **facts, **({"peak_bytes": peak, "usable_bytes": usable} if peak < math.inf else {})}


class Measured(NamedTuple):
    """The memory of a step: rows of its largest micro-batches, and the bytes of tensors before it and at its peak."""

    rows: int
    before: float
    peak: float  # infinite if the memory ran out


class _Trial:
    """Runs micro-batches of fused lanes. `peaks`: bytes by lanes."""

    def __init__(self, memory: DeviceMemory, stepper: Stepper, facts: dict[str, Any]) -> None:
        self._memory, self._stepper, self._facts = memory, stepper, facts
        self.peaks: dict[int, float] = {}

    def __call__(self, lanes: int) -> Measured:
        """Return the memory of a step with so many lanes in each forward; 0: with one row."""
        stepper = self._stepper
        before = self._memory.start()
        batch = stepper.task.largest(lanes)
        try:
            stepper.rehearse(batch, stepper.accumulation // max(1, lanes))
            self.peaks[lanes] = self._memory.peak()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if stepper.engine.spec.sharded:
                raise self._short(lanes) from error
            self.peaks[lanes] = math.inf
        stepper.engine.drop_gradients()  # not in the handler, where the error holds the tensors of the forward
        self._memory.start()  # so the peak that is logged later is that of the training
        return Measured(len(batch[stepper.task.inputs[0]]), before, self.peaks[lanes])

    def _short(self, lanes: int) -> OutOfMemory:
        """Return the error of a rank that others wait for in a collective. The largest number before it has fit."""
        fits = max([1, *(n for n in self.peaks if n < lanes)])
        return OutOfMemory(
            f"rank {self._stepper.runtime.rank} ran out of memory while loop.fuse_lanes=auto was measured with {lanes} "
            f"lanes in one forward; the same command starts again with {fits}",
            self._stepper.splits,
            {"lanes": fits, **self._facts},
        )


def largest_that_fits(
    allowed: Sequence[int], measure: Callable[[int], Measured], usable: float, everywhere: Callable[[bool], bool]
) -> int:
    """Return the largest of the `allowed` numbers of lanes that fits on all ranks; 1 if none does. All ranks.

    One row and one lane are measured, and then the largest number that is predicted to fit, as long as there is one. A
    prediction is a straight line through the last two numbers that fit. Where a lane is a single row, it begins at the
    bytes before.

    Args:
        allowed: ascending, from 1.
        measure: returns the memory of a number of lanes; 0: of one row.
        usable: bytes of this rank.
        everywhere: whether something is true on all ranks.
    """
    row, lane = measure(0), measure(1)
    if not everywhere(lane.peak <= usable):
        return 1
    points = [(row.rows, row.peak) if row.rows < lane.rows else (0, row.before), (lane.rows, lane.peak)]
    left, fits = [n for n in allowed if n > 1], 1

    def predicted(lanes: int) -> float:
        (a, low), (b, high) = points[-2:]
        return high + (lanes * lane.rows - b) * (high - low) / (b - a)

    while (lanes := next((n for n in reversed(left) if everywhere(predicted(n) <= usable)), 0)) > 0:
        found = measure(lanes)
        if everywhere(found.peak <= usable):
            fits, left = lanes, [n for n in left if n > lanes]
            points.append((found.rows, found.peak))
        else:
            left = [n for n in left if n < lanes]
    return fits
