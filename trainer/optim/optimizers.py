"""Build optimizers with weight-decay groups and layer-wise rates.

Weight decay is applied to matrices of linear layers and convolutions. It is off for biases and norms of any shape, and
for embeddings, where it would pull rare words to zero in every step without them. A tied matrix is an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.optim.choices import make_optimizer
from trainer.recipe.sections import OptimConfig, ParamGroup, is_changed

# Modules whose matrices decay, and names that never do: biases of any shape, gains, decay rates of Mamba.
MIXING = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
NOT_A_MATRIX = re.compile(r"bias|norm|gamma|beta|A_log$")
EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|\w*emb)([._]|$)")
SMALLEST = 2.0**-10  # size of a tensor that starts at 0, as in nanoT5


def build_optimizer(
    model: nn.Module, optim: OptimConfig, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters, each once.

    The groups are "decay" and "no_decay" (an empty one is left out), parameters in the order of `named_parameters`;
    each has "name", "base_lr" and "depth". With layer-wise rates there are two groups for each of the `depths` (name of
    a parameter -> 0 head, 1 top layer of the trunk, …; None = the model has no such parts). With `relative_rates` there
    is one group for each size of tensors, too, and there are more for `optim.groups`. Frozen parameters are in none.

    Raises:
        UsageError: no trainable parameter, layer-wise rates for a model without layers, a pattern that matches no
            parameter, or as `make_optimizer`.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}  # tied ones come once
    if not trainable:
        raise UsageError("the model has no trainable parameter: everything is frozen; unfreeze a part")
    by_layer = [key for key in ("layer_decay", "unfreeze", "head_lr") if is_changed(optim, key)]
    if by_layer and depths is None:
        raise UsageError(
            f"optim.{by_layer[0]}: {type(model).__name__} is not divided into trunk and head; leave it out"
        )
    plain, own = _without_decay(model), matching_groups(model, optim)
    found: dict[_Group, list[nn.Parameter]] = {}
    for name, p in trainable.items():
        group = _Group(
            depth=depths[name] if by_layer and depths is not None else 0,
            no_decay=id(p) in plain,
            size=size_of(p) if optim.relative_rates else 1.0,
            own=own.get(name, -1),
            other=optim.name == "muon" and not _is_hidden_matrix(name, p, plain, depths),
        )
        found.setdefault(group, []).append(p)
    groups = [group.settings(optim, bool(by_layer)) | {"params": found[group]} for group in sorted(found)]
    return make_optimizer(optim, groups, list(trainable.values()))


class _Group(NamedTuple):
    """What the parameters of a group have in common.

    Attributes:
        depth: of their layer.
        no_decay: no weight decay.
        size: of `relative_rates`.
        own: their number in `optim.groups`; -1 = in none.
        other: AdamW trains them, where `optim.name` is muon.
    """

    depth: int
    no_decay: bool
    size: float
    own: int
    other: bool

    def settings(self, optim: OptimConfig, by_layer: bool) -> dict[str, Any]:
        """Return name, rate and weight decay for the optimizer."""
        own = optim.groups[self.own] if self.own >= 0 else ParamGroup(match="-")
        name = ("no_decay" if self.no_decay else "decay") + (f".{self.depth}" if by_layer else "")
        name += f" x {self.size:.4g}" if optim.relative_rates else ""
        name += f" {own.match}" if self.own >= 0 else ""
        rate = own.lr or (optim.head_lr if optim.head_lr and self.depth == 0 else optim.lr)
        decay = 0.0 if self.no_decay else optim.weight_decay
        muon = {"matrices": not self.other} if optim.name == "muon" else {}
        return {
            "name": name + (" adamw" if self.other else ""),
            "depth": self.depth,
            "base_lr": self.size * rate,
            "weight_decay": decay if own.weight_decay is None else own.weight_decay,
            **muon,
        }


def matching_groups(model: nn.Module, optim: OptimConfig) -> dict[str, int]:
    """Return the number of the first of `optim.groups` that matches, for each parameter that one matches.

    Raises:
        UsageError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for number, group in enumerate(optim.groups):
        if not any(re.search(group.match, name) for name in names):
            raise UsageError(
                f"optim.groups[{number}].match={group.match!r} matches no parameter of {type(model).__name__}, which "
                f"has {', '.join(names[:3])}, … {names[-1]}"
            )
    return {name: first for name in names if (first := optim.group_of(name)) is not None}


def _is_hidden_matrix(name: str, p: Tensor, plain: set[int], depths: Mapping[str, int] | None) -> bool:
    """Return whether a parameter is a matrix of a hidden layer: no embedding, no norm, and not in the head."""
    return id(p) not in plain and p.ndim == 2 and (depths is None or depths[name] > 0)


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
