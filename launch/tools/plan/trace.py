"""The recipe's model without memory for its weights, and traces of its largest micro-batch.

The task's real loss runs forward and backward. A dispatch mode records when storages are created and freed. Workspaces
inside of an operation are not seen. Gradients are dropped as soon as they are ready: memory.py adds what is kept.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet, finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from launch.tools.plan.corpus import Shapes
from trainer.concatenation import is_description
from trainer.engine.objective import Objective, freeze_unused
from trainer.engine.utilization import NoValues
from trainer.errors import UsageError
from trainer.hub_paths import FORMS
from trainer.models.adapters import adapter_of, inject
from trainer.models.classifiers import depths
from trainer.models.configs import PretrainedConfig
from trainer.models.freezing import freeze_parts
from trainer.models.hf_config import label_maps
from trainer.models.layers import checkpoint_activations, layer_classes
from trainer.models.pretrained import configuration
from trainer.models.vocabulary import grown_rows
from trainer.optim.choices import is_elementwise, moments_per_weight
from trainer.optim.optimizers import build_optimizer
from trainer.task.base import Task

# In order of time: changes of "activations" and "logits" in bytes, and the elements of "gradients" that are ready.
Trace = list[tuple[str, int]]
ATTENTION = "scaled_dot_product_attention"
HALF = (ATTENTION, "linear", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "conv1d", "einsum")  # by autocast
PERSISTENT = 100_000  # elements: ZeRO-3 shards no parameter up to this size (DeepSpeed's default)


class Layout(NamedTuple):
    """Numbers of elements. A tied parameter counts once."""

    elements: int
    trained: int
    small: int  # in parameters that ZeRO-3 does not shard
    layer: int  # in the largest layer, which FSDP2 gathers as one
    outside: int  # outside of layers
    moments: float  # values that the optimizer keeps for each trained element
    shardable: bool  # its state
    buffers: int  # bytes of tensors that are neither trained nor sharded, such as positions


class Emulation(NoValues):
    """With `cuda`, run what CUDA would run on meta tensors: autocast, and fused kernels of attention and dropout."""

    def __init__(self, *, cuda: bool = False, autocast: bool = False) -> None:
        super().__init__()
        self._cuda, self._autocast = cuda, autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._cuda and self._autocast and name in HALF:
            args = [a.bfloat16() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        if self._cuda and name == ATTENTION:  # all kernels keep as much for the backward, and a mask needs little
            kernel = torch.ops.aten._scaled_dot_product_efficient_attention
            return kernel(*args[:3], None, True, kwargs.get("dropout_p", 0.0))[0]
        if self._cuda and name == "dropout":
            return _fused_dropout(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def fake_model(task: Task, on_cpu: bool, half: bool = False, checkpointing: int = 0) -> tuple[Objective, Layout]:
    """Build the model of the task's recipe, with frozen parts as in a training.

    It has fake CPU tensors, or meta tensors, for which model code takes its GPU paths. `half`: bf16 weights.
    `checkpointing`: as `loop.checkpointed_layers`.
    """
    settings = task.recipe.optim
    with torch.device("meta"), tempfile.TemporaryDirectory(prefix="rankzero-plan-") as name:
        if isinstance(task.recipe.model, PretrainedConfig):  # without weights in the folder, as if it were trained
            Path(name, "config.json").write_text(json.dumps(_pretrained_config(task)), encoding="utf-8")
        model = task.build_model(Path(name))
        if (adapter := adapter_of(task.recipe)) is not None:
            inject(model, adapter)
    frozen = freeze_parts(model, settings)
    objective = Objective(task, model, frozen)
    try:
        with Emulation():
            freeze_unused(objective)
    except RuntimeError as error:
        raise UsageError(
            f"the memory of {type(model).__name__} cannot be planned: its forward needs the values of tensors, and a "
            f"plan has only shapes ({error}). `rankzero train RECIPE --debug` logs the memory of a step"
        ) from error
    if checkpointing:
        checkpoint_activations(model, checkpointing)
    layout = _layout(model, build_optimizer(model, settings, depths(model)))
    if half:
        model.to(torch.bfloat16)
    if on_cpu:
        _to_fake_cpu(model)
    return objective.train(), layout


def _layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> Layout:
    sizes, classes = [p.numel() for p in model.parameters()], layer_classes(model)
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in classes]
    return Layout(
        elements=sum(sizes),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        small=sum(size for size in sizes if size <= PERSISTENT),
        layer=max(layers, default=0),
        outside=max(0, sum(sizes) - sum(layers)),
        moments=moments_per_weight(optimizer),
        shardable=is_elementwise(optimizer),
        buffers=sum(b.nbytes for b in model.buffers()),
    )


def _pretrained_config(task: Task) -> dict[str, Any]:
    """Return the contents of config.json of the recipe's model, with all defaults."""
    settings: Any = task.recipe.model
    try:
        config = configuration(task.recipe, task.tokenizer)
        if not settings.random:
            config.vocab_size = grown_rows(config.vocab_size, task.tokenizer)
    except (OSError, ValueError) as error:
        text = f"model.name={settings.name!r}: its config.json cannot be read: {error}. Give {FORMS}"
        raise UsageError(text) from error
    values = json.loads(config.to_json_string(use_diff=False))
    names = getattr(getattr(task, "settings", None), "names", None)
    values |= label_maps(names) if names and settings.pooling == "auto" else {}
    return {**values, "trunk": values}


def _to_fake_cpu(model: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors. Tied parameters stay tied."""
    fakes: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, t in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                if id(t) not in fakes:
                    fake = torch.empty_like(t, device="cpu")
                    fakes[id(t)] = nn.Parameter(fake, t.requires_grad) if isinstance(t, nn.Parameter) else fake
                setattr(module, name, fakes[id(t)])


class _Recorder(TorchDispatchMode):
    """Record when storages are created and freed. `known` are those that were there before."""

    def __init__(self, trace: Trace, known: list[Tensor], logits_width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace, self._logits_width = trace, logits_width
        self._seen = WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor) and (storage := output.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                kind = "logits" if output.dim() > 1 and output.shape[-1] == self._logits_width else "activations"
                self._trace.append((kind, storage.nbytes()))
                finalize(storage, self._trace.append, (kind, -storage.nbytes()))
        return result


class Tracer:
    """Traces of a micro-batch, and the activations of an evaluation batch (`evaluation`)."""

    def __init__(self, task: Task, shapes: Shapes, *, on_cpu: bool) -> None:
        model: Any = task.recipe.model
        if not on_cpu and getattr(model, "attention", None) in ("auto", "flash"):  # what auto is on a GPU
            model = model.model_copy(update={"attention": "sdpa"})
            task.recipe = task.recipe.model_copy(update={"model": model})
        self.task, self.shapes, self.on_cpu, self._traces = task, shapes, on_cpu, dict[Any, Trace]()
        objective, self.layout = fake_model(task, on_cpu=on_cpu)
        self.checkpointing, self._logits_width = [0], 0
        self.evaluation = round(sum(peak_of(self._evaluate(objective)).values()))
        with contextlib.suppress(UsageError):  # not every model can checkpoint activations
            self.trace(half=False, autocast=False, checkpointing=1)
            self.checkpointing = sorted({0, 1, task.recipe.loop.checkpointed_layers})

    def trace(self, *, half: bool, autocast: bool, checkpointing: int) -> Trace:
        """Return the trace of a forward and backward. `half`: with weights in bf16."""
        key = (half, autocast, checkpointing)
        if key not in self._traces:
            objective, _ = fake_model(self.task, on_cpu=self.on_cpu, half=half, checkpointing=checkpointing)
            self._traces[key] = self._train(objective, autocast)
        return self._traces[key]

    def _train(self, objective: Objective, autocast: bool) -> Trace:
        trace: Trace = []

        def ready(p: Tensor) -> None:
            p.grad = None
            trace.append(("gradients", p.numel()))

        for p in objective.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(ready)
        with self._recorded(objective, self.shapes, trace, autocast) as batch:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and self.on_cpu):
                loss, _ = Objective.parts(objective(**batch))
            # loss.backward() would turn function modes off. Checkpointed layers, which run again there, need them.
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
        return trace

    @torch.no_grad()
    def _evaluate(self, objective: Objective) -> Trace:
        """Trace an evaluation batch: the logits of all its labels in fp32, and their losses. No beam search."""
        task, trace = self.task, Trace()
        before, width = (max(self.shapes[name][i] for name in task.inputs) for i in (0, 1))
        rows = max(1, task.recipe.evaluation.tokens_per_batch // width)
        padded = {name: shape for name, shape in self.shapes.items() if not is_description(name)}
        shapes = {name: (max(1, shape[0] * rows // before), *shape[1:]) for name, shape in padded.items()}
        with self._recorded(objective, shapes, trace, False) as batch:
            logits = task.logits(objective.eval().model, batch).float().flatten(0, -2)
            self._logits_width = logits.shape[-1]
            labels = batch["labels"].flatten()
            if (
                len(logits) == len(labels) and not labels.is_floating_point()
            ):  # labels or numbers of a row are no classes
                F.cross_entropy(logits, labels, reduction="none")
        return trace

    @contextlib.contextmanager
    def _recorded(
        self, objective: Objective, shapes: Shapes, trace: Trace, autocast: bool
    ) -> Iterator[dict[str, Tensor]]:
        """Yield a batch of zeros and record what follows."""
        tensors = [*objective.parameters(), *objective.buffers()]
        device = "cpu" if self.on_cpu else "meta"
        # all fake tensors of a computation must belong to one mode
        with getattr(tensors[0], "fake_mode", contextlib.nullcontext()):
            batch = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in shapes.items()}
            recorder = _Recorder(trace, [*tensors, *batch.values()], self._logits_width)
            with recorder, Emulation(cuda=not self.on_cpu, autocast=autocast):
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
