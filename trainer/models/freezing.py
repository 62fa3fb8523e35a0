"""Freeze parts of a model for a whole run."""

from __future__ import annotations

from torch import nn

from trainer.errors import UsageError
from trainer.models.classifiers import depths, embedding_names, trunk_prefix
from trainer.recipe.sections import OptimConfig


def freeze_parts(model: nn.Module, optim: OptimConfig) -> nn.Module | None:
    """Freeze what `optim` says. Return the trunk if all of it is frozen.

    Raises:
        UsageError: the model is not divided so, or has fewer layers.
    """
    trunk = freeze_trunk(model) if optim.freeze_trunk else None
    if optim.freeze_embeddings:
        freeze_embeddings(model)
    if optim.freeze_layers:
        _freeze_layers(model, optim.freeze_layers)
    for name, p in model.named_parameters() if optim.groups else ():
        number = optim.group_of(name)
        if number is not None and optim.groups[number].frozen:
            p.requires_grad_(False)
    return trunk


def _prefix(model: nn.Module, key: str) -> str:
    """Return the prefix of the trunk's parameters.

    Raises:
        UsageError: the model is not divided into trunk and head. Names the key of `optim`.
    """
    prefix = trunk_prefix(model)
    if prefix is None:
        raise UsageError(f"optim.{key}: {type(model).__name__} is not divided into trunk and head")
    return prefix


def freeze_trunk(model: nn.Module) -> nn.Module:
    """Freeze the trunk for the whole run, and return it.

    Raises:
        UsageError: the model is not divided into trunk and head.
    """
    prefix = _prefix(model, "freeze_trunk")
    return model.get_submodule(prefix[:-1]).requires_grad_(False)


def freeze_embeddings(model: nn.Module) -> None:
    """Freeze the embeddings of the trunk for the whole run.

    A step then saves the work on a gradient of vocabulary x width numbers, most of which are 0.

    Raises:
        UsageError: the model is not divided into trunk and head, or has no embeddings.
    """
    prefix = _prefix(model, "freeze_embeddings")
    names = embedding_names(model, prefix)
    if not names:
        raise UsageError(f"optim.freeze_embeddings: {type(model).__name__} has no embeddings; set it to false")
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def _freeze_layers(model: nn.Module, count: int) -> None:
    """Freeze the lowest layers of the trunk and its embeddings.

    Raises:
        UsageError: the model is not divided into trunk and head, or has fewer layers.
    """
    _prefix(model, "freeze_layers")
    depth_of = depths(model) or {}
    layers = max(depth_of.values()) - 1  # the embeddings are below the lowest one
    if count > layers:
        raise UsageError(f"optim.freeze_layers={count}: {type(model).__name__} has {layers} layers; give at most those")
    for name, depth in depth_of.items():
        if depth > layers - count:
            model.get_parameter(name).requires_grad_(False)
