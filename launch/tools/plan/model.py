"""The recipe's model without memory for its weights, and the sizes that decide the memory of a run."""

from __future__ import annotations

import json
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from trainer.engine.engines import layer_classes
from trainer.engine.step import Objective, freeze_unused
from trainer.errors import UsageError
from trainer.hub_paths import FORMS
from trainer.models.classifiers import checkpoint_activations, depths, freeze_embeddings, freeze_trunk, label_maps
from trainer.models.configs import PretrainedConfig
from trainer.models.pretrained import configuration
from trainer.models.vocabulary import grown_rows
from trainer.optim.optimizers import build_optimizer
from trainer.task.base import Task

PERSISTENT = 100_000  # elements: ZeRO-3 shards no parameter up to this size (DeepSpeed's default)


class Layout(NamedTuple):
    """Numbers of elements. A tied parameter counts once."""

    elements: int
    trained: int
    small: int  # in parameters that ZeRO-3 does not shard
    layer: int  # in the largest layer, which FSDP2 gathers as one
    outside: int  # outside of layers
    moments: int  # values that the optimizer keeps for each trained element
    buffers: int  # bytes of tensors that are neither trained nor sharded, such as positions


class ShapesOnly(TorchFunctionMode):
    """Answer False where code asks for the value of a tensor, such as whether a batch has no padding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__bool__", "__contains__"):
            return False
        return func(*args, **(kwargs or {}))


class FakeModel(NamedTuple):
    """A model without memory for its weights. `unused`: names of parameters that the loss does not depend on."""

    objective: Objective
    layout: Layout
    logits_width: int
    unused: list[str]


def fake_model(task: Task, *, on_cpu: bool, half: bool = False, checkpointing: bool = False) -> FakeModel:
    """Build the model of the task's recipe, with frozen parts as in a training.

    It has fake CPU tensors, or meta tensors, for which model code takes its GPU paths. `half`: bf16 weights.

    Raises:
        UsageError: the model cannot do what the recipe asks for, or its forward needs the values of tensors.
    """
    settings = task.recipe.optim
    with torch.device("meta"), tempfile.TemporaryDirectory(prefix="rankzero-plan-") as name:
        if isinstance(task.recipe.model, PretrainedConfig):  # without weights in the folder, as if it were trained
            Path(name, "config.json").write_text(json.dumps(_pretrained_config(task)), encoding="utf-8")
        model = task.build_model(Path(name))
    frozen = freeze_trunk(model) if settings.freeze_trunk else None
    if settings.freeze_embeddings:
        freeze_embeddings(model)
    objective = Objective(task, model, frozen)
    try:
        with ShapesOnly():
            unused = freeze_unused(objective)
            width = task.logits(model, {name: t.to("meta") for name, t in task.filler().items()}).shape[-1]
    except RuntimeError as error:
        raise UsageError(
            f"the memory of {type(model).__name__} cannot be planned: its forward needs the values of tensors, and a "
            f"plan has only shapes ({_reason(error)}). `rankzero train RECIPE --debug` logs the memory of a step"
        ) from error
    if checkpointing:
        checkpoint_activations(model)
    layout = _layout(model, build_optimizer(model, settings, depths(model)).defaults)
    if half:
        model.to(torch.bfloat16)
    if on_cpu:
        _to_fake_cpu(model)
    return FakeModel(objective.train(), layout, width, unused)


def _layout(model: nn.Module, optimizer: dict[str, Any]) -> Layout:
    sizes, classes = [p.numel() for p in model.parameters()], layer_classes(model)
    modules = [module for module in model.modules() if type(module).__name__ in classes]
    layers = [sum(p.numel() for p in module.parameters()) for module in modules]
    return Layout(
        elements=sum(sizes),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        small=sum(size for size in sizes if size <= PERSISTENT),
        layer=max(layers, default=0),
        outside=max(0, sum(sizes) - sum(layers)),
        moments=2 if "betas" in optimizer else int(optimizer["momentum"] > 0),
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
        text = f"model.name={settings.name!r}: its config.json cannot be read: {_reason(error)}. Give {FORMS}"
        raise UsageError(text) from error
    values = json.loads(config.to_json_string(use_diff=False))
    names = getattr(getattr(task, "settings", None), "names", None)
    values |= label_maps(names) if names and settings.pooling == "auto" else {}
    return {**values, "trunk": values}


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


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
