"""One micro-batch's forward and backward without memory behind it, written down as what is taken and given back.

The model stands on the meta device (as on a GPU) or is made of fake CPU tensors; the task's real loss runs through
autograd, our own functions included, and a dispatch mode notes every storage that an operation makes and when it dies.
What an operation needs inside of itself is not seen. Gradients are taken away as soon as they are ready: what an engine
does with them is told by `launch.planning.replay`, so that one rehearsal serves all engines and numbers of ranks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.planning.gpu_ways import Answers, GpuWays
from trainer.engine.step import Objective
from trainer.models.classifiers import reading_embedding
from trainer.optim.adversarial import Perturbation

Device = Literal["gpu", "cpu"]
Arithmetic = Literal["fp32", "autocast", "half"]  # half: the weights that are computed with are bf16 or fp16
Shapes = dict[str, tuple[int, ...]]


@dataclass
class Timeline:
    """What happened, in order.

    Events: ("take", storage, bytes, is_logits), ("give", storage), ("grad", parameter); in the forward ("enter", unit)
    and ("leave", unit), in the backward ("return", unit); ("turn",) between them, ("end",) after the backward.
    `parameter` and `unit` are positions in the lists that `rehearse` was given.
    """

    events: list[tuple[Any, ...]] = field(default_factory=list)
    logits_width: int = 0  # last dimension of the logits


class _Ledger(TorchDispatchMode):
    """Writes every new storage into the timeline, and its end."""

    def __init__(self, timeline: Timeline, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events, self._timeline = timeline.events, timeline
        self._known = [t.untyped_storage() for t in known]  # kept alive, so that a number is not used twice
        self._seen: dict[int, weakref.ref[Any] | None] = {s._cdata: None for s in self._known}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        number, self._count = self._count, self._count + 1
        width = self._timeline.logits_width
        is_logits = bool(width) and tensor.dim() > 0 and tensor.shape[-1] == width
        self._events.append(("take", number, storage.nbytes(), is_logits))

        def ended(_: Any, key: int = key, number: int = number) -> None:
            self._seen.pop(key, None)
            self._events.append(("give", number))

        self._seen[key] = weakref.ref(storage, ended)


# -- the rehearsal -----------------------------------------------------------------------------------------------------


def rehearse(
    objective: Objective,
    parameters: Sequence[nn.Parameter],
    units: Sequence[nn.Module],
    shapes: Shapes,
    device: Device,
    arithmetic: Arithmetic,
) -> Timeline:
    """Forward and backward of one micro-batch (two of each in adversarial training).

    Args:
        objective: over a model on the meta device (gpu) or of fake CPU tensors (cpu), in the `arithmetic`'s type.
        parameters: the trainable ones; "grad" events give positions in this list.
        units: modules whose beginning is noted; in the backward, that of their output's gradient.
        shapes: of the micro-batch's tensors; token ids are zeros, labels 0.
        device: whose ways are followed.
        arithmetic: fp32 (tf32 needs as much), autocast, or half weights.
    """
    timeline, model = Timeline(), objective.model
    with contextlib.ExitStack() as stack:
        batch = _batch(model, shapes, device, stack)
        _watch_logits(objective, timeline, stack)
        for handle in _hooks(timeline, parameters, units):
            stack.callback(handle.remove)
        known = [*model.parameters(), *model.buffers(), *batch.values()]
        stack.enter_context(_Ledger(timeline, known))
        forward = _context(device, arithmetic, stack)
        _micro_batch(objective, batch, forward, timeline.events)
    return timeline


@torch.no_grad()
def most_in_evaluation(objective: Objective, shapes: Shapes, device: Device) -> int:
    """Bytes that an evaluation batch takes besides the weights: logits of all its labels in fp32, and their losses.

    What a beam search keeps comes on top: see docs/plan.md.
    """
    timeline, model, task = Timeline(), objective.model, objective.task
    with contextlib.ExitStack() as stack:
        stack.callback(objective.train)
        batch = _batch(model, shapes, device, stack)
        model.eval()
        stack.enter_context(_Ledger(timeline, [*model.parameters(), *model.buffers(), *batch.values()]))
        forward = _context(device, "fp32", stack)
        with forward():
            logits = task.logits(model, batch).float().flatten(0, -2)
            F.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
    return most(timeline)[0]


def most(timeline: Timeline) -> tuple[int, int]:
    """The largest sum of what lives at one time, gradients aside, and what of it are logits."""
    live = logits = 0
    largest = (0, 0)
    sizes: dict[int, tuple[int, int]] = {}
    for event in timeline.events:
        if event[0] == "take":
            sizes[event[1]] = event[2], event[2] if event[3] else 0
            live, logits = live + sizes[event[1]][0], logits + sizes[event[1]][1]
            largest = max(largest, (live, logits))
        elif event[0] == "give":
            size, of_logits = sizes.pop(event[1])
            live, logits = live - size, logits - of_logits
    return largest


def _batch(model: nn.Module, shapes: Shapes, device: Device, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """Zeros of these shapes, in the fake mode of the model's tensors if they are fake."""
    fake = next((p.fake_mode for p in model.parameters() if hasattr(p, "fake_mode")), None)
    if fake is not None:
        stack.enter_context(fake)
    where = "meta" if device == "gpu" else "cpu"
    return {name: torch.zeros(shape, dtype=torch.int64, device=where) for name, shape in shapes.items()}


def _micro_batch(
    objective: Objective, batch: dict[str, Tensor], forward: Callable[[], Any], events: list[tuple[Any, ...]]
) -> None:
    settings = objective.task.recipe.optim.adversarial
    twin = None
    if settings.kind != "none":
        twin = Perturbation(reading_embedding(objective.model), settings)

    def once() -> None:
        with forward():
            loss, _ = Objective.parts(objective(**batch))
        events.append(("turn",))
        # not loss.backward(): function modes are off within it, and a checkpointed layer is run again there
        _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
        events.append(("end",))

    if twin is None:
        once()
        return
    with twin.clean():
        once()
    with twin.moved_by(twin.direction()):
        once()


def _context(device: Device, arithmetic: Arithmetic, stack: contextlib.ExitStack) -> Callable[[], Any]:
    if device == "gpu":
        ways = stack.enter_context(GpuWays(arithmetic == "autocast"))
        return ways.forward
    stack.enter_context(Answers())
    if arithmetic == "autocast":
        return lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext


def _watch_logits(objective: Objective, timeline: Timeline, stack: contextlib.ExitStack) -> None:
    """The width of the logits is known from the first operation that the loss does on them."""
    task = objective.task
    original = task.logits

    def logits(*args: Any, **kwargs: Any) -> Tensor:
        found = original(*args, **kwargs)
        if not timeline.logits_width:
            timeline.logits_width = found.shape[-1]
            _mark_last(timeline, found.untyped_storage().nbytes())
        return found

    task.logits = logits  # type: ignore[method-assign]
    stack.callback(lambda: task.__dict__.pop("logits"))


def _mark_last(timeline: Timeline, size: int) -> None:
    """The logits themselves were taken before their width was known: the newest storage of their size."""
    for at in range(len(timeline.events) - 1, -1, -1):
        event = timeline.events[at]
        if event[0] == "take" and event[2] == size:
            timeline.events[at] = (*event[:3], True)
            return


def _hooks(timeline: Timeline, parameters: Sequence[nn.Parameter], units: Sequence[nn.Module]) -> Iterator[Any]:
    events = timeline.events

    def ready(p: Tensor, number: int) -> None:
        events.append(("grad", number))
        p.grad = None

    for number, p in enumerate(parameters):
        yield p.register_post_accumulate_grad_hook(lambda p, number=number: ready(p, number))

    def enter(module: nn.Module, args: Any, number: int) -> None:
        events.append(("enter", number))

    def leave(module: nn.Module, args: Any, output: Any, number: int) -> None:
        events.append(("leave", number))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda g, number=number: events.append(("return", number)))
                return

    for number, unit in enumerate(units):
        yield unit.register_forward_pre_hook(lambda m, a, number=number: enter(m, a, number))
        yield unit.register_forward_hook(lambda m, a, o, number=number: leave(m, a, o, number))


def fake_mode() -> FakeTensorMode:
    """For models of fake CPU tensors."""
    return FakeTensorMode(allow_non_fake_inputs=True)
