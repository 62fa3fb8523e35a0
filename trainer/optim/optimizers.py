"""Build optimizers with weight-decay groups and layer-wise rates.

Weight decay is applied to matrices of linear layers and convolutions. It is off for biases and norms of any shape, and
for embeddings, where it would pull rare words to zero in every step without them. A tied matrix is an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.recipe.sections import OptimConfig

# Keys that only some choices use: key -> (the key of the choice, the choices that use it).
USED_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "betas": ("name", ("adamw",)),
    "eps": ("name", ("adamw",)),
    "momentum": ("name", ("sgd",)),
    "nesterov": ("name", ("sgd",)),
    "warmup_steps": ("schedule", ("constant", "linear", "cosine", "inverse_sqrt", "noam", "plateau")),
    "cut_fraction": ("schedule", ("slanted_triangular",)),
    "ratio": ("schedule", ("slanted_triangular",)),
    "plateau": ("schedule", ("plateau",)),
    "adversarial.epsilon": ("adversarial.kind", ("fgm", "noise")),
    "adversarial.weight": ("adversarial.kind", ("fgm", "noise")),
    "averaging.last": ("averaging.kind", ("last",)),
    "averaging.decay": ("averaging.kind", ("ema",)),
}

FUSED_DEVICES = ("cpu", "cuda")
# Modules whose matrices decay, and names that never do: biases of any shape, gains, decay rates of Mamba.
MIXING = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
NOT_A_MATRIX = re.compile(r"bias|norm|gamma|beta|A_log$")
EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|\w*emb)([._]|$)")
SMALLEST = 2.0**-10  # size of a tensor that starts at 0, as in nanoT5


def build_optimizer(
    model: nn.Module, optim: OptimConfig, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov & Hutter 2019) or SGD over the trainable parameters, each once.

    The groups are "decay" and "no_decay" (an empty one is left out), parameters in the order of `named_parameters`;
    each has "name", "base_lr" and "depth". With layer-wise rates there are two groups for each of the `depths` (name of
    a parameter -> 0 head, 1 top layer of the trunk, …; None = the model has no such parts). With `relative_rates` there
    is one group for each size of tensors, too. Frozen parameters are in no group. AdamW is fused if the device has the
    kernel. SGD never is, because its fused kernel does not support DTensor (torch 2.13), which FSDP2 needs.

    Raises:
        UsageError: no trainable parameter, nesterov without momentum, or layer-wise rates for a model without layers.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}  # tied ones come once
    if not trainable:
        raise UsageError("the model has no trainable parameter: everything is frozen; unfreeze a part")
    groups = _groups(model, trainable, optim, depths)
    if optim.name == "adamw":
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in trainable.values())
        # None, not False: False would also rule out torch's own choice of the foreach loop
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
    if optim.nesterov and optim.momentum == 0:
        raise UsageError("optim.nesterov=true needs a momentum: set optim.momentum above 0, such as 0.9")
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)


def _groups(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], optim: OptimConfig, depths: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    by_layer = [key for key in ("layer_decay", "unfreeze", "head_lr") if _changed(optim, [key])]
    if by_layer and depths is None:
        raise UsageError(
            f"optim.{by_layer[0]}: {type(model).__name__} is not divided into trunk and head; leave it out"
        )
    plain = _without_decay(model)
    found: dict[tuple[int, bool, float], list[nn.Parameter]] = {}
    for name, p in trainable.items():
        depth = depths[name] if by_layer and depths is not None else 0
        size = size_of(p) if optim.relative_rates else 1.0
        found.setdefault((depth, id(p) in plain, size), []).append(p)
    return [
        {
            "params": parameters,
            "name": ("no_decay" if without else "decay")
            + (f".{depth}" if by_layer else "")
            + (f" x {size:.4g}" if optim.relative_rates else ""),
            "depth": depth,
            "base_lr": size * (optim.head_lr if optim.head_lr and depth == 0 else optim.lr),
            "weight_decay": 0.0 if without else optim.weight_decay,
        }
        for (depth, without, size), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


@torch.no_grad()
def size_of(p: Tensor) -> float:
    """Return the RMS of the initial values of a tensor, rounded to a power of sqrt(2).

    So similar tensors share a group.

    A rate times this is the relative step of Adafactor (Shazeer & Stern 2018, section 8), fixed at its initial value.
    """
    if p.is_meta:  # the planner has no values
        return 1.0
    rms = float(p.detach().double().square().mean().sqrt())
    return 2.0 ** (round(2 * math.log2(max(rms, SMALLEST))) / 2)


def _without_decay(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that must not decay.

    Decided by the type of the module first, then by the parameter's name and shape. Matrices of linear layers and
    convolutions decay regardless of their names. A tied parameter decays only if it does under each of its names.
    """
    found: set[int] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if not _decays(module, path, name, parameter):
                found.add(id(parameter))
    return found


def _decays(module: nn.Module, path: str, name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter of a module decays."""
    sizes = list(getattr(parameter, "ds_shape", parameter.shape))  # under the init of ZeRO-3 it is an empty vector
    if len(sizes) <= 1 or NOT_A_MATRIX.search(name) or getattr(parameter, "_no_weight_decay", False):
        return False
    if isinstance(module, MIXING):
        return True
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "norm" in type(module).__name__.lower():
        return False
    is_vector = sum(size > 1 for size in sizes) <= 1  # with further dimensions of size 1
    return not is_vector and not EMBEDDING.search(f"{path}.{name}")


def set_rates(optimizer: torch.optim.Optimizer, multiplier_of_depth: Callable[[int], float]) -> None:
    """Set the learning rate of every group to its `base_lr` times the multiplier of its depth."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier_of_depth(group["depth"])


def unused_keys(optim: OptimConfig) -> list[str]:
    """Return keys of `optim` that differ from the default although the chosen optimizer, schedule or averaging does not
    use them.
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
    """Return whether a key differs from its default (a resolved recipe has every key)."""
    first, *rest = path
    value = getattr(section, first)
    if first not in section.model_fields_set:
        return False
    if rest:
        return _changed(value, rest)
    return bool(value != type(section).model_fields[first].get_default(call_default_factory=True))
