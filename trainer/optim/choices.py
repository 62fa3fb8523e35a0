"""The optimizers that `optim.name` can choose: known names, `torch.optim.NAME`, and classes of a user's own."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import user_code
from trainer.errors import UsageError
from trainer.recipe.patterns import KNOWN_OPTIMIZERS
from trainer.recipe.sections import OptimConfig

TORCH = "torch.optim."
FUSED_DEVICES = ("cpu", "cuda")
# Optimizers of torch whose update of a weight depends on that weight alone, so that an engine can shard their state.
ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RAdam", "RMSprop", "Rprop", "SGD")
UNFIT = {"LBFGS": "it runs the loss several times in a step", "SparseAdam": "it needs sparse gradients"}


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2), with decoupled weight decay.

    A step is `lr * sign(b1 * m + (1 - b1) * g)`, and then `m = b2 * m + (1 - b2) * g`. Good rates are 3 to 10 times
    smaller than AdamW's.
    """

    elementwise = True

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                moment: Tensor = self.state[p]["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.lerp(moment, p.grad, 1 - first).sign_(), alpha=-group["lr"])
                moment.lerp_(p.grad, 1 - second)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the matrices of hidden layers, and AdamW for all other parameters (Jordan et al. 2024).

    Muon's update is scaled to the size of AdamW's (Liu et al. 2025), so that both use the same rate.

    Args:
        params: groups, of which those with `"matrices": True` have only matrices of linear layers.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, **options: Any) -> None:
        groups = list(params)
        super().__init__(groups, {"lr": lr})
        muon = [group for group in groups if group["matrices"]]
        other = [group for group in groups if not group["matrices"]]
        options = {"adjust_lr_fn": "match_rms_adamw", **options}
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if muon:
            self._parts[True] = torch.optim.Muon(muon, lr=lr, **options)
        if other:
            self._parts[False] = torch.optim.AdamW(other, lr=lr, betas=betas, eps=eps)
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        for matrices, part in self._parts.items():  # `load_state_dict`, which Accelerate calls, replaces both
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["matrices"] == matrices]
            part.step()
        for group in self.param_groups:  # Muon counts no steps, and a checkpoint holds one count for all parameters
            for p in group["params"] if group["matrices"] else ():
                if p.grad is not None:
                    self.state[p]["step"] = self.state[p].get("step", torch.zeros(())) + 1


def make_optimizer(
    optim: OptimConfig, groups: Sequence[dict[str, Any]], parameters: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Build the optimizer that `optim.name` chooses, over groups of parameters.

    AdamW is fused if the device has the kernel. SGD never is, because its fused kernel does not support DTensor (torch
    2.13), which FSDP2 needs.

    Raises:
        UsageError: no such class, or it does not take `optim.options`.
    """
    if optim.name == "adamw":
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
        # None, not False: False would also rule out torch's own choice of the foreach loop
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
    if optim.name == "sgd":
        if optim.nesterov and optim.momentum == 0:
            raise UsageError("optim.nesterov=true needs a momentum: set optim.momentum above 0, such as 0.9")
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
    options = dict(optim.options)
    if optim.name in ("muon", "adamw8bit"):
        options |= {"betas": optim.betas, "eps": optim.eps}
    found = _class_of(optim.name)
    try:
        optimizer: torch.optim.Optimizer = found(groups, lr=optim.lr, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optim.options={optim.options!r}: {found.__name__} refuses them: {error}") from None
    return optimizer


def _class_of(name: str) -> type[Any]:
    """Return the class for a value of `optim.name`.

    Raises:
        UsageError: there is none, it is not installed, or it cannot train here.
    """
    if name == "adamw8bit":
        return _adamw8bit()
    own: dict[str, type[Any]] = {"lion": Lion, "muon": MuonWithAdamW, "adafactor": torch.optim.Adafactor}
    if name in own:
        return own[name]
    if user_code.is_reference(name):
        found = user_code.load(name, "optim.name")
    else:
        found = getattr(torch.optim, name.removeprefix(TORCH), None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        near = difflib.get_close_matches(name.removeprefix(TORCH), dir(torch.optim), n=1)
        hint = f"; did you mean {TORCH}{near[0]}?" if near else ""
        known = ", ".join(KNOWN_OPTIMIZERS)
        raise UsageError(f"optim.name={name!r} is no optimizer; known: {known}, torch.optim.NAME, package:Class{hint}")
    if found.__module__.startswith(TORCH) and (why := UNFIT.get(found.__name__)):
        raise UsageError(f"optim.name={name!r}: {why}; choose another optimizer")
    return found


def _adamw8bit() -> type[Any]:
    if importlib.util.find_spec("torchao") is None:
        raise UsageError("optim.name=adamw8bit needs torchao, which is not installed: pip install 'rankzero[torchao]'")
    from trainer.optim.adamw8bit import AdamW8bit

    return AdamW8bit


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether each weight is updated from its own gradient and state alone, so that engines can shard them.

    A class of a user's own says so by an attribute `elementwise = True`.
    """
    own = type(optimizer)
    if own.__module__.startswith(TORCH):
        return own.__name__ in ELEMENTWISE
    return bool(getattr(own, "elementwise", False))


def moments_per_weight(optimizer: torch.optim.Optimizer) -> float:
    """Return the fp32 numbers that an optimizer keeps for each weight; 2 for one that is not known here."""
    if moment_bytes := getattr(optimizer, "moment_bytes", None):
        weights = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        return float(moment_bytes() / 4 / weights)
    if isinstance(optimizer, torch.optim.SGD):
        return int(optimizer.defaults["momentum"] > 0)
    if isinstance(optimizer, torch.optim.Adafactor):
        return 0  # of a matrix it keeps a row and a column
    return 1 if isinstance(optimizer, Lion) else 2
