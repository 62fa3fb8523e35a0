"""Memory of the recipe's largest micro-batch, traced on tensors without memory.

The task's real loss runs forward and backward. A dispatch mode records when storages are created and freed. Workspaces
inside of an operation are not seen. Gradients are dropped as soon as they are ready: memory.py adds what is kept.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from launch.tools.plan.corpus import Shapes
from launch.tools.plan.model import FakeModel, ShapesOnly, fake_model
from trainer.engine.step import Objective
from trainer.errors import UsageError
from trainer.task.base import Task

# In order of time: changes of "activations" and "logits" in bytes, and the elements of "gradients" that are ready.
Trace = list[tuple[str, int]]
HALF = ("linear", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "conv1d", "einsum")  # in CUDA's autocast


class _CudaEmulation(ShapesOnly):
    """Run what CUDA would run on meta tensors: autocast, and fused kernels of attention and dropout."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._autocast and name in (*HALF, "scaled_dot_product_attention"):
            args = [a.bfloat16() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        if name == "scaled_dot_product_attention":  # all kernels keep as much for the backward, and a mask needs little
            kernel = torch.ops.aten._scaled_dot_product_efficient_attention
            return kernel(*args[:3], None, True, kwargs.get("dropout_p", 0.0))[0]
        if name == "dropout":
            return _fused_dropout(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


class _Recorder(TorchDispatchMode):
    """Record when storages are created and freed. `known` are those that were there before."""

    def __init__(self, trace: Trace, known: list[Tensor], logits_width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace, self._logits_width = trace, logits_width
        self._known = [t.untyped_storage() for t in known]  # kept alive: an identity must not be used twice
        self._seen = set(map(id, self._known))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor) and id(output.untyped_storage()) not in self._seen:
                storage = output.untyped_storage()
                kind = "logits" if output.dim() > 1 and output.shape[-1] == self._logits_width else "activations"
                self._seen.add(id(storage))
                self._trace.append((kind, storage.nbytes()))
                weakref.finalize(storage, self._free, id(storage), kind, storage.nbytes())
        return result

    def _free(self, identity: int, kind: str, size: int) -> None:
        self._seen.discard(identity)
        self._trace.append((kind, -size))


class Tracer:
    """Traces of the largest of some micro-batches, and the activations of an evaluation batch (`evaluation`).

    Raises:
        UsageError: the model of the recipe cannot be built, or its forward needs the values of tensors.
    """

    def __init__(self, task: Task, candidates: Sequence[Shapes], *, on_cpu: bool) -> None:
        model: Any = task.recipe.model
        if not on_cpu and getattr(model, "attention", None) == "auto":  # what auto is on a GPU
            model = model.model_copy(update={"attention": "sdpa"})
            task.recipe = task.recipe.model_copy(update={"model": model})
        self.task, self.on_cpu, self.checkpointing = task, on_cpu, [False]
        self.model = fake_model(task, on_cpu=on_cpu)
        self.layout, self._models, self._traces = self.model.layout, {(False, False): self.model}, dict[Any, Trace]()
        with contextlib.suppress(UsageError):  # not every model can checkpoint activations
            self._models[False, True] = fake_model(task, on_cpu=on_cpu, checkpointing=True)
            self.checkpointing = [False, True]
        self.shapes = max(candidates, key=lambda shapes: sum(peak_of(self._train(self.model, shapes)).values()))
        self.evaluation = round(sum(peak_of(self._evaluate()).values()))

    def trace(self, *, half: bool, autocast: bool, checkpointing: bool) -> Trace:
        """Return the trace of a forward and backward. `half`: with weights in bf16."""
        key = (half, autocast, checkpointing)
        if key not in self._traces:
            if (half, checkpointing) not in self._models:
                model = fake_model(self.task, on_cpu=self.on_cpu, half=half, checkpointing=checkpointing)
                self._models[half, checkpointing] = model
            self._traces[key] = self._train(self._models[half, checkpointing], self.shapes, autocast)
        return self._traces[key]

    def _train(self, model: FakeModel, shapes: Shapes, autocast: bool = False) -> Trace:
        trace: Trace = []

        def ready(p: Tensor) -> None:
            p.grad = None
            trace.append(("gradients", p.numel()))

        hooks = [p.register_post_accumulate_grad_hook(ready) for p in model.objective.parameters() if p.requires_grad]
        with self._recorded(model, shapes, trace, autocast) as batch:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and self.on_cpu):
                loss, _ = Objective.parts(model.objective(**batch))
            # loss.backward() would turn function modes off. Checkpointed layers, which run again there, need them.
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
        for hook in hooks:
            hook.remove()
        return trace

    @torch.no_grad()
    def _evaluate(self) -> Trace:
        """Trace an evaluation batch: the logits of all its labels in fp32, and their losses. No beam search."""
        task, objective, trace = self.task, self.model.objective, list[tuple[str, int]]()
        before, width = (max(self.shapes[name][i] for name in task.inputs) for i in (0, 1))
        rows = max(1, task.recipe.evaluation.tokens_per_batch // width)
        shapes = {name: (max(1, shape[0] * rows // before), *shape[1:]) for name, shape in self.shapes.items()}
        with self._recorded(self.model, shapes, trace) as batch:
            logits = task.logits(objective.eval().model, batch).float().flatten(0, -2)
            F.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
        objective.train()
        return trace

    @contextlib.contextmanager
    def _recorded(
        self, model: FakeModel, shapes: Shapes, trace: Trace, autocast: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Yield a batch of zeros and record what follows."""
        tensors = [*model.objective.parameters(), *model.objective.buffers()]
        device = "cpu" if self.on_cpu else "meta"
        # all fake tensors of a computation must belong to one mode
        with getattr(tensors[0], "fake_mode", contextlib.nullcontext()):
            batch = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in shapes.items()}
            mode = ShapesOnly() if self.on_cpu else _CudaEmulation(autocast)
            with _Recorder(trace, [*tensors, *batch.values()], model.logits_width), mode:
                yield batch


def peak_of(trace: Trace, kept: float = 0) -> dict[str, float]:
    """Return the parts of the largest sum over a trace in bytes. Gradients have `kept` bytes an element."""
    now: dict[str, float] = {"activations": 0, "logits": 0, "gradients": 0}
    largest = dict(now)
    for kind, change in trace:
        now[kind] += change * (kept if kind == "gradients" else 1)
        if sum(now.values()) > sum(largest.values()):
            largest = dict(now)
    return largest
