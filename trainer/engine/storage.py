"""Where an engine keeps weights and moments, behind one face: by parameter name, whole, in fp32.

`Storage` is that of a single process and of DDP, where every rank holds everything; `trainer.engine.zero` and
`trainer.engine.fsdp` hold the private calls of the other engines. The methods that say so are entered by all ranks, for
the same parameters in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW and of SGD


class Storage:
    """The trained model's parameters and the optimizer's state."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        self.model, self.optimizer, self._scaler = model, optimizer, scaler

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters; a tied one once."""
        return list(self.model.named_parameters())

    def weight(self, p: nn.Parameter) -> Tensor:
        """The whole parameter, fp32. All ranks enter."""
        return p.detach()

    def moments(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Its moments, whole, fp32; none before the first step, and of a frozen one. All ranks enter."""
        state = self.optimizer.state.get(p, {})
        return {name: state[name] for name in MOMENTS if isinstance(state.get(name), Tensor)}

    def step(self) -> float | None:
        """The optimizer's own count of steps, which all parameters share; None where it keeps none."""
        return one_step(self.optimizer.state[p] for _, p in self.parameters() if p in self.optimizer.state)

    def scaler(self) -> dict[str, Any] | None:
        """State of the loss scaler (fp16); None without one."""
        return None if self._scaler is None else dict(self._scaler.state_dict())

    # -- back ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        """Puts weights and moments ("NAME.exp_avg") back, bit for bit.

        Names and shapes have been checked, and the whole model has its weights already: here that is the trained one.
        """
        for name, p in self.parameters():
            if own := of_parameter(moments, name):
                count = {} if step is None else {"step": self._count(p, step)}
                self.optimizer.state[p] = {**count, **{m: t.to(p.device) for m, t in own.items()}}

    def restore_scaler(self, state: dict[str, Any] | None) -> None:
        """Of this engine's scaler, or of DeepSpeed's, whose scale is taken over."""
        if self._scaler is None or not state:
            return
        if "cur_scale" in state:
            state = {**self._scaler.state_dict(), "scale": state["cur_scale"]}
        self._scaler.load_state_dict(state)

    def _count(self, p: Tensor, step: float) -> Tensor:
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return torch.tensor(step, dtype=torch.float32, device=p.device if fused else "cpu")


def of_parameter(moments: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The moments of one parameter."""
    return {m: moments[f"{name}.{m}"] for m in MOMENTS if f"{name}.{m}" in moments}


def one_step(states: Any) -> float | None:
    """The one count of steps in the states of an optimizer."""
    counted = {float(state["step"]) for state in states if "step" in state}
    assert len(counted) <= 1, "all parameters are stepped together"
    return counted.pop() if counted else None
