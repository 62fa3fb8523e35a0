"""A trace of one micro-batch: which storages its forward and backward allocate and free, and when gradients are ready.

The task's real loss runs through autograd on tensors without memory, and a dispatch mode records every storage that an
operation creates. Workspaces inside of an operation are not seen. Gradients are dropped as soon as they are ready,
because `engine_memory` adds what an engine does with them: one trace serves all engines and numbers of ranks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.tools.plan.cuda_emulation import CudaEmulation, ShapesOnly
from trainer.engine.step import Objective
from trainer.models.classifiers import reading_embedding
from trainer.optim.adversarial import Perturbation

if TYPE_CHECKING:
    from launch.tools.plan.layout import FakeModel

Shapes = dict[str, tuple[int, ...]]  # of a micro-batch's tensors, all of integers
Kind = Literal["activations", "logits", "gradient", "backward"]
# In order of time: ("activations" or "logits", change in bytes), ("gradient", elements of one that is ready),
# ("backward", 0) after the forward.
Trace = list[tuple[Kind, int]]


class _Recorder(TorchDispatchMode):
    """Record when storages are created and freed. `known` are those that were there before."""

    def __init__(self, trace: Trace, known: list[Tensor], logits_width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace, self._logits_width = trace, logits_width
        self._known = [t.untyped_storage() for t in known]  # kept alive: an identity must not be used twice
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._seen:
                self._record(leaf)
        return result

    def _record(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        identity, size = storage._cdata, storage.nbytes()
        is_logits = tensor.dim() > 1 and tensor.shape[-1] == self._logits_width
        kind: Kind = "logits" if is_logits else "activations"
        self._trace.append((kind, size))

        def freed(_: Any) -> None:
            self._seen.pop(identity, None)
            self._trace.append((kind, -size))

        self._seen[identity] = weakref.ref(storage, freed)


def trace_micro_batch(fake: FakeModel, shapes: Shapes, *, autocast: bool) -> Trace:
    """Trace a forward and backward: in adversarial training the second one, with perturbed embeddings.

    `autocast`: the model computes in bf16 by autocast.
    """
    trace: Trace = []
    objective, settings = fake.objective, fake.objective.task.recipe.optim.adversarial

    def ready(p: Tensor) -> None:
        trace.append(("gradient", p.numel()))
        p.grad = None

    with contextlib.ExitStack() as stack:
        batch = stack.enter_context(_recorded(fake, shapes, trace))
        for p in objective.model.parameters():
            if p.requires_grad:
                stack.callback(p.register_post_accumulate_grad_hook(ready).remove)

        def run() -> None:
            with ShapesOnly() if fake.on_cpu else CudaEmulation(autocast) as mode:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and fake.on_cpu):
                    loss, _ = Objective.parts(objective(**batch))
                mode.end_forward()
                trace.append(("backward", 0))
                # loss.backward() turns function modes off. Checkpointed layers, which run again there, need them.
                _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)

        if settings.kind != "none":
            perturbation = Perturbation(reading_embedding(objective.model), settings)
            with perturbation.clean():
                run()
            with ShapesOnly():
                stack.enter_context(perturbation.moved_by(perturbation.direction()))
            trace.clear()
        run()
    return trace


@torch.no_grad()
def trace_evaluation(fake: FakeModel, shapes: Shapes) -> Trace:
    """Trace an evaluation batch: the logits of all its labels in fp32, and their losses. No beam search."""
    trace: Trace = []
    with _recorded(fake, shapes, trace) as batch, ShapesOnly() if fake.on_cpu else CudaEmulation(False):
        fake.objective.model.eval()
        logits = fake.objective.task.logits(fake.objective.model, batch).float().flatten(0, -2)
        labels = batch["labels"].flatten()
        if len(logits) == len(labels) and not labels.is_floating_point():  # labels or numbers of a row are no classes
            F.cross_entropy(logits, labels, reduction="none")
        fake.objective.train()
    return trace


def peak_of(trace: Trace) -> tuple[int, int]:
    """Return the most bytes that are allocated at one time, gradients aside, and how many of them are logits."""
    total = logits = 0
    peak = (0, 0)
    for kind, change in trace:
        if kind in ("activations", "logits"):
            total, logits = total + change, logits + change * (kind == "logits")
            peak = max(peak, (total, logits))
    return peak


@contextlib.contextmanager
def _recorded(fake: FakeModel, shapes: Shapes, trace: Trace) -> Iterator[dict[str, Tensor]]:
    """Yield a batch of zeros and record what follows."""
    tensors = [*fake.objective.model.parameters(), *fake.objective.model.buffers()]
    # all fake tensors of a computation must belong to one mode
    with getattr(tensors[0], "fake_mode", contextlib.nullcontext()):
        device = "cpu" if fake.on_cpu else "meta"
        batch = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in shapes.items()}
        with _Recorder(trace, [*tensors, *batch.values()], fake.logits_width):
            yield batch
