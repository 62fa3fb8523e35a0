"""The repeated layers of a model, their compilation and their activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import noop_context_fn

from trainer.errors import UsageError
from trainer.models.fast_linear import rerun_contexts

# Graphs of one class of layers: with and without a mask or position bias, for one row and for several.
GRAPHS = 64
SWITCH = "gradient_checkpointing"  # of layers, as the transformers library calls it


def stacks_of(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of layers by prefix ("encoder.layers."), in the order of the model."""
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():  # a list comes before the lists in it
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(stacks)):
            stacks[f"{name}."] = module
    return stacks


def layer_classes(model: nn.Module) -> list[str]:
    """Return the class names of the layers: what the model's module lists hold, except lists inside of a layer."""
    return sorted({type(layer).__name__ for stack in stacks_of(model).values() for layer in stack})


def compile_layers(model: nn.Module, backend: Any = "inductor") -> None:
    """Compile every layer in place. Layers of a class share their graphs, for any number of rows and tokens.

    Only training is compiled: evaluation and generation, which have other arguments at each step, run as before.
    Names of weights stay. Hooks of layers and activation checkpointing remain outside of the graphs, so that FSDP2
    gathers a layer before its graph runs. A graph is made for several rows and another one for a single row.

    Raises:
        UsageError: the model has no list of layers.
    """
    layers = [layer for stack in stacks_of(model).values() for layer in stack]
    classes = {kind for kind in map(type, layers) if not kind.__module__.startswith("torch.")}
    if not classes:
        raise UsageError(f"loop.compile=layers: {type(model).__name__} has no repeated layers; set it to true or false")
    config: Any = torch._dynamo.config
    config.recompile_limit = max(GRAPHS, config.recompile_limit)
    config.optimize_ddp = False  # it would split the graph of a layer where a gradient bucket of DDP ends
    compiled = {kind: _compiled_class(kind, backend) for kind in classes}
    for layer in layers:
        layer.__class__ = compiled.get(type(layer), type(layer))


def _compiled_class(kind: type[nn.Module], backend: Any) -> type[nn.Module]:
    """Return a class with the same name, whose forward runs a graph in training.

    A class instead of a function on each layer: `fully_shard` replaces classes, too, transformers adds activation
    checkpointing to the forward of a class, and copies of a layer run their own weights.
    """
    plain: Any = kind.forward
    graph = torch.compile(plain, dynamic=True, backend=backend)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (graph if self.training else plain)(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def checkpoint_activations(model: nn.Module, every: int = 1, *, compiled: bool = False) -> None:
    """Turn on activation checkpointing: layers store their inputs only and run again in the backward pass.

    Args:
        every: n for the first of each n layers of a list.
        compiled: whether torch.compile traces the model with its checkpoints.

    Raises:
        UsageError: the model does not support it.
    """
    trunk = getattr(model, "trunk", model)
    stacks = stacks_of(trunk).values()
    chosen = {layer for stack in stacks for layer in list(stack)[::every]}
    layers = [layer for stack in stacks for layer in stack if hasattr(layer, SWITCH)]
    if getattr(trunk, "supports_gradient_checkpointing", False):
        contexts = noop_context_fn if compiled else rerun_contexts
        trunk.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})  # type: ignore[operator]
    elif not layers:
        raise UsageError(f"loop.activation_checkpointing: {type(trunk).__name__} does not support it; set it to none")
    if every > 1 and not layers:
        raise UsageError(
            f"loop.activation_checkpointing: {type(trunk).__name__} cannot choose layers; set it to full or none"
        )
    for layer in layers:
        setattr(layer, SWITCH, layer in chosen)
