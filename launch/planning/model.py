"""The recipe's model without its weights, made ready as `trainer.engine.session` does, and what engines cut it into."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from launch.planning.gpu_ways import Answers
from launch.planning.rehearsal import Arithmetic, Device, fake_mode
from trainer.engine.engines import layer_classes
from trainer.engine.step import Objective, freeze_unused
from trainer.errors import UsageError
from trainer.hub_paths import FORMS
from trainer.models.classifiers import checkpoint_activations, depths, freeze_embeddings, freeze_trunk, label_maps
from trainer.models.pretrained import configuration
from trainer.models.vocabulary import grown_rows
from trainer.optim.optimizers import build_optimizer

if TYPE_CHECKING:
    from trainer.recipe import Recipe
    from trainer.task.base import Task


@dataclass(frozen=True)
class Parameter:
    """One parameter; a tied one stands once.

    Attributes:
        name: its first name.
        shape: of the whole.
        group: of the optimizer, None for a frozen one.
        block: which of the model's layers it is in, None outside of them: what FSDP2 gathers as one.
    """

    name: str
    shape: tuple[int, ...]
    group: int | None
    block: int | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Sketch:
    """What of a model decides the memory of an engine.

    Attributes:
        parameters: in the order of `named_parameters`.
        moments: fp32 numbers that the optimizer keeps for each trained one: 2 (AdamW), 1 or 0 (SGD).
        counts: whether the optimizer keeps a count of steps for each tensor (AdamW).
        buffers: bytes of what is neither trained nor cut up (positions).
        modules: for each module with parameters of its own their positions in `parameters`: what ZeRO-3 gathers.
        blocks: number of layers.
    """

    parameters: tuple[Parameter, ...]
    moments: int
    counts: bool
    buffers: int
    modules: tuple[tuple[int, ...], ...]
    blocks: int

    @cached_property
    def trained(self) -> tuple[Parameter, ...]:
        """In the order of `parameters`."""
        return tuple(p for p in self.parameters if p.group is not None)

    @cached_property
    def all_elements(self) -> int:
        return sum(p.size for p in self.parameters)

    @cached_property
    def trained_elements(self) -> int:
        return sum(p.size for p in self.trained)

    @cached_property
    def groups(self) -> list[list[Parameter]]:
        """The optimizer's groups, in its order."""
        count = 1 + max(p.group for p in self.parameters if p.group is not None)
        return [[p for p in self.parameters if p.group == g] for g in range(count)]

    @cached_property
    def gathered(self) -> dict[int | None, list[Parameter]]:
        """What FSDP2 gathers as one: the layers, and what is outside of them (None)."""
        places: list[int | None] = [None, *range(self.blocks)]
        return {place: [p for p in self.parameters if p.block == place] for place in places}


@dataclass
class Made:
    """A model for rehearsals, with its sketch. `units` are `sketch.modules` first, then the blocks."""

    sketch: Sketch
    objective: Objective
    trained: list[nn.Parameter]
    units: list[nn.Module]
    unused: list[str]


def make(task: Task, device: Device, arithmetic: Arithmetic, *, checkpointing: bool) -> Made:
    """The model of the task's recipe, in training mode, frozen parts frozen, without memory behind its weights.

    Raises:
        UsageError: the recipe asks for what this model cannot do (as a training would say).
    """
    recipe = task.recipe
    with torch.device("meta"), config_folder(recipe, task) as config:
        model = task.build_model(config)
    frozen = freeze_trunk(model) if recipe.optim.freeze_trunk else None
    if recipe.optim.freeze_embeddings:
        freeze_embeddings(model)
    objective = Objective(task, model, frozen)
    try:
        with Answers():
            unused = freeze_unused(objective)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{type(model).__name__} looks at numbers in its forward, and a plan has only shapes ({reason}): its "
            "memory cannot be planned; `rankzero train RECIPE --debug` tells what a step takes (metrics.jsonl, memory)"
        ) from error
    if checkpointing:
        checkpoint_activations(model)
    optimizer = build_optimizer(model, recipe.optim, depths(model))
    sketch, modules, blocks = _sketch(model, optimizer)
    if arithmetic == "half":
        model.to(torch.bfloat16)
    if device == "cpu":
        _to_fake_cpu(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Made(sketch, objective.train(), trained, [*modules, *blocks], unused)


def _sketch(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Sketch, list[nn.Module], list[nn.Module]]:
    group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    classes = layer_classes(model)
    blocks = [m for m in model.modules() if type(m).__name__ in classes]
    block_of = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
    named = list(model.named_parameters())
    at = {id(p): number for number, (_, p) in enumerate(named)}
    modules = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    parameters = tuple(Parameter(name, tuple(p.shape), group_of.get(id(p)), block_of.get(id(p))) for name, p in named)
    first: Any = optimizer.defaults
    adam = "betas" in first
    sketch = Sketch(
        parameters,
        moments=2 if adam else int(first["momentum"] > 0),
        counts=adam,
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        modules=tuple(tuple(at[id(p)] for p in m.parameters(recurse=False)) for m in modules),
        blocks=len(blocks),
    )
    return sketch, modules, blocks


@contextlib.contextmanager
def config_folder(recipe: Recipe, task: Task) -> Iterator[Path]:
    """What `build_model` takes for a trained model: a folder with config.json and no weights.

    Raises:
        UsageError: the configuration of a pretrained model cannot be had.
    """
    settings: Any = recipe.model
    with tempfile.TemporaryDirectory(prefix="rankzero-plan-") as name:
        folder = Path(name)
        if settings.kind == "pretrained":
            facts = pretrained_config(recipe, task)
            names = getattr(getattr(task, "settings", None), "names", None)
            if names and settings.pooling == "auto":
                facts |= label_maps(names)
            (folder / "config.json").write_text(json.dumps({**facts, "trunk": facts}), encoding="utf-8")
        yield folder


def pretrained_config(recipe: Recipe, task: Task) -> dict[str, Any]:
    """config.json of the recipe's model of the transformers library, all defaults written out.

    Raises:
        UsageError: there is none.
    """
    settings: Any = recipe.model
    try:
        config = configuration(recipe, task.tokenizer)
        if not settings.random:
            config.vocab_size = grown_rows(config.vocab_size, task.tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        text = f"model.name={settings.name!r}: its config.json cannot be had: {reason}. Give {FORMS}"
        raise UsageError(text) from error
    return dict(json.loads(config.to_json_string(use_diff=False)))


def _to_fake_cpu(model: nn.Module) -> None:
    """Meta tensors take the ways of a GPU in our code; fake ones those of a CPU. Ties stay."""
    made: dict[int, nn.Parameter] = {}
    with fake_mode():
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None and id(p) not in made:
                    fake = torch.empty(p.shape, dtype=p.dtype, device="cpu")
                    made[id(p)] = nn.Parameter(fake, requires_grad=p.requires_grad)
                module._parameters[name] = None if p is None else made[id(p)]
            for name, b in module._buffers.items():
                module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype, device="cpu")
