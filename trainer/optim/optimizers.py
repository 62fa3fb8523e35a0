"""Optimizers with decay groups, and their rates.

Weight decay is for matrices that mix features. It is off for biases and norms (all parameters of one dimension) and for
embeddings: decaying a row pulls rare words to zero at every step in which they do not occur. A matrix tied to an
embedding is that embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from trainer.errors import UsageError
from trainer.sections import OptimConfig

# Keys that only some choices use: key -> (the key that chooses, the choices that use it).
USED_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "betas": ("name", ("adamw",)),
    "eps": ("name", ("adamw",)),
    "momentum": ("name", ("sgd",)),
    "nesterov": ("name", ("sgd",)),
    "warmup_steps": ("schedule", ("constant", "linear", "cosine", "inverse_sqrt", "noam", "plateau")),
    "cut_fraction": ("schedule", ("slanted_triangular",)),
    "ratio": ("schedule", ("slanted_triangular",)),
    "plateau": ("schedule", ("plateau",)),
    "averaging.last": ("averaging.kind", ("last",)),
    "averaging.decay": ("averaging.kind", ("ema",)),
}

FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD over the model's trainable parameters, each once.

    The groups are "decay" and "no_decay" (an empty one is left out), parameters in the order of `named_parameters`;
    each carries "name" and "base_lr". Frozen parameters are in none. AdamW runs fused where the device has the kernel;
    SGD never does, because its fused kernel knows no DTensor (torch 2.13): FSDP2 would fail, or step with other
    arithmetic than the other engines.

    Raises:
        UsageError: nothing is trainable, or nesterov without momentum.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]  # tied ones come once
    if not trainable:
        raise UsageError("the model has no trainable parameter: everything is frozen; unfreeze a part of it")
    plain = _without_decay(model)
    halves = {
        "decay": ([p for p in trainable if id(p) not in plain], optim.weight_decay),
        "no_decay": ([p for p in trainable if id(p) in plain], 0.0),
    }
    groups = [
        {"params": parameters, "name": name, "base_lr": optim.lr, "weight_decay": decay}
        for name, (parameters, decay) in halves.items()
        if parameters
    ]
    if optim.name == "adamw":
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in trainable)
        # None, not False: False would also rule out torch's own choice of the foreach loop
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
    if optim.nesterov and optim.momentum == 0:
        raise UsageError("optim.nesterov=true needs a momentum: set optim.momentum above 0, such as 0.9")
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)


def _without_decay(model: nn.Module) -> set[int]:
    """Identities of the parameters that must not decay."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    return embeddings | {id(parameter) for parameter in model.parameters() if _dimensions(parameter) <= 1}


def _dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter: under ZeRO-3's init it is cut to an empty vector and keeps its shape aside."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def set_rates(optimizer: torch.optim.Optimizer, multiplier_of_group: Callable[[str], float]) -> None:
    """Sets the learning rate of every group to its `base_lr` times the multiplier of its name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier_of_group(group["name"])


def unused_keys(optim: OptimConfig) -> list[str]:
    """Dotted keys of `optim` that were set to something else than the default and that the chosen optimizer, schedule
    or averaging does not use: for a note to the user.
    """
    return [
        key
        for key, (chooser, users) in USED_BY.items()
        if _value(optim, chooser) not in users and _changed(optim, key.split("."))
    ]


def _value(section: BaseModel, key: str) -> Any:
    value: Any = section
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _changed(section: BaseModel, path: list[str]) -> bool:
    """Whether the key was given and differs from its default (a resolved recipe gives every key)."""
    first, *rest = path
    value = getattr(section, first)
    if first not in section.model_fields_set:
        return False
    if rest:
        return _changed(value, rest)
    return bool(value != type(section).model_fields[first].get_default(call_default_factory=True))
