"""The recipe's model without its weights, and the layout of its parameters: shapes, optimizer groups, layers."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from launch.tools.plan.cuda_emulation import ShapesOnly
from trainer.engine.engines import layer_classes
from trainer.engine.step import Objective, freeze_unused
from trainer.errors import UsageError
from trainer.hub_paths import FORMS
from trainer.models.adapters import adapter_of, inject
from trainer.models.classifiers import checkpoint_activations, depths, label_maps
from trainer.models.configs import PretrainedConfig
from trainer.models.freezing import freeze_parts
from trainer.models.pretrained import configuration
from trainer.models.vocabulary import grown_rows
from trainer.optim.optimizers import build_optimizer

if TYPE_CHECKING:
    from trainer.task.base import Task


class Parameter(NamedTuple):
    """One parameter. A tied one is listed once.

    `group` is None for a frozen one. `block` is the layer, which FSDP2 gathers as one; None outside of layers.
    """

    shape: tuple[int, ...]
    group: int | None
    block: int | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamLayout:
    """The facts of a model and its optimizer that decide the memory of an engine.

    Attributes:
        parameters: in the order of `model.parameters()`.
        moments: fp32 values that the optimizer keeps for each trained element: 2 (AdamW), 1 or 0 (SGD).
        counts: whether the optimizer keeps a step count for each tensor (AdamW).
        buffers: bytes of tensors that are neither trained nor sharded, such as positions.
    """

    parameters: tuple[Parameter, ...]
    moments: int
    counts: bool
    buffers: int

    @cached_property
    def trained(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.group is not None)

    @cached_property
    def elements(self) -> int:
        return sum(p.size for p in self.parameters)

    @cached_property
    def trained_elements(self) -> int:
        return sum(p.size for p in self.trained)

    @cached_property
    def groups(self) -> list[list[Parameter]]:
        numbers = sorted({p.group for p in self.trained if p.group is not None})
        return [[p for p in self.trained if p.group == number] for number in numbers]

    @cached_property
    def blocks(self) -> dict[int | None, list[Parameter]]:
        numbers: list[int | None] = [None, *sorted({p.block for p in self.parameters if p.block is not None})]
        return {number: [p for p in self.parameters if p.block == number] for number in numbers}


class FakeModel(NamedTuple):
    """A model without memory for its weights. `unused`: names of parameters that the loss does not depend on."""

    layout: ParamLayout
    objective: Objective
    logits_width: int
    unused: list[str]
    on_cpu: bool


def fake_model(task: Task, *, on_cpu: bool, half: bool = False, checkpointing: bool = False) -> FakeModel:
    """Build the model of the task's recipe, with frozen parts and optimizer groups as in a training.

    It has fake CPU tensors, or meta tensors, for which model code takes its GPU paths. `half`: bf16 weights.

    Raises:
        UsageError: the model cannot do what the recipe asks for, or its forward needs the values of tensors.
    """
    recipe, settings = task.recipe, task.recipe.optim
    with torch.device("meta"), tempfile.TemporaryDirectory(prefix="rankzero-plan-") as name:
        folder = Path(name)
        if isinstance(recipe.model, PretrainedConfig):  # without weights in the folder, as if it were trained
            (folder / "config.json").write_text(json.dumps(_pretrained_config(task)), encoding="utf-8")
        model = task.build_model(folder)
        if (adapter := adapter_of(recipe)) is not None:
            inject(model, adapter)
    frozen = freeze_parts(model, settings)
    objective = Objective(task, model, frozen)
    try:
        with ShapesOnly():
            unused = freeze_unused(objective)
            width = task.logits(model, {name: t.to("meta") for name, t in task.filler().items()}).shape[-1]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the memory of {type(model).__name__} cannot be planned: its forward needs the values of tensors, and a "
            f"plan has only shapes ({reason}). `rankzero train RECIPE --debug` logs the memory of a step in "
            "metrics.jsonl"
        ) from error
    if checkpointing:
        checkpoint_activations(model)
    layout = _layout(model, build_optimizer(model, settings, depths(model)))
    if half:
        model.to(torch.bfloat16)
    if on_cpu:
        _to_fake_cpu(model)
    return FakeModel(layout, objective.train(), width, unused, on_cpu)


def _layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> ParamLayout:
    group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    classes = layer_classes(model)
    blocks = [module for module in model.modules() if type(module).__name__ in classes]
    block_of = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
    adam = "betas" in optimizer.defaults
    return ParamLayout(
        tuple(Parameter(tuple(p.shape), group_of.get(id(p)), block_of.get(id(p))) for p in model.parameters()),
        moments=2 if adam else int(optimizer.defaults["momentum"] > 0),
        counts=adam,
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
    )


def _pretrained_config(task: Task) -> dict[str, Any]:
    """Return the contents of config.json of the recipe's model, with all defaults.

    Raises:
        UsageError: it cannot be read.
    """
    settings: Any = task.recipe.model
    try:
        config = configuration(task.recipe, task.tokenizer)
        if not settings.random:
            config.vocab_size = grown_rows(config.vocab_size, task.tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        text = f"model.name={settings.name!r}: its config.json cannot be read: {reason}. Give {FORMS}"
        raise UsageError(text) from error
    values = json.loads(config.to_json_string(use_diff=False))
    names = getattr(getattr(task, "settings", None), "names", None)
    if names and settings.pooling == "auto":
        values |= label_maps(names)
    return {**values, "trunk": values}


def _to_fake_cpu(model: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors. Tied parameters stay tied."""
    fakes: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for tensor in [*model.parameters(), *model.buffers()]:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fakes[id(t)] for name, t in tensors.items() if t is not None})
