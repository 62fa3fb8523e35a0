"""AdamW with moments of 8 bits (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861), by torchao.

Each block of 256 weights shares an fp32 scale, so that a weight has 2.03 bytes of moments in place of 8. Moments of a
tensor with less than 4,096 weights, or with incomplete blocks, stay in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit as TorchaoAdamW8bit

SMALLEST = 4096  # weights of a tensor with moments of 8 bits
CODES, SCALE = "_codes", "_scale"  # what a checkpoint adds to the name of a moment


class AdamW8bit(TorchaoAdamW8bit):  # type: ignore[misc]
    """torchao's optimizer with rates as plain numbers, and with moments that safetensors can store."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        if options.get("amsgrad"):  # torchao would fail in the first step
            raise ValueError("amsgrad needs moments in fp32")
        super().__init__(params, lr=lr, **options)
        for group in self.param_groups:
            group["lr"] = float(group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all parameters that have a gradient. On a CPU nothing is compiled, which would take minutes."""
        assert closure is None
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)  # torchao takes no other type
        try:
            with torch.compiler.set_stance("force_eager") if on_cpu else contextlib.nullcontext():
                super().step()
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def pack_moments(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the moments of a parameter as plain tensors."""
        plain: dict[str, Tensor] = {}
        for name, moment in moments.items():
            coded: Any = moment
            parts = {CODES: coded.codes, SCALE: coded.scale} if hasattr(moment, "codes") else {"": moment}
            plain |= {f"{name}{suffix}": tensor for suffix, tensor in parts.items()}
        return plain

    def unpack_moments(self, p: nn.Parameter, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the moments of a parameter from plain tensors, bit for bit. Those of AdamW are rounded to 8 bits."""
        moments: dict[str, Tensor] = {}
        for name in dict.fromkeys(key.removesuffix(CODES).removesuffix(SCALE) for key in plain):
            moment = moments[name] = self._new_buffer(p.detach(), name == "exp_avg")
            if f"{name}{CODES}" in plain:
                moment.codes.copy_(plain[f"{name}{CODES}"])
                moment.scale.copy_(plain[f"{name}{SCALE}"])
            else:
                moment.copy_(plain[name])
        return moments

    def moment_bytes(self) -> int:
        """Return the bytes of all moments."""
        block = self.block_size
        coded = plain = 0
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.numel() >= SMALLEST and p.numel() % block == 0:
                coded += p.numel() + 4 * p.numel() // block
            else:
                plain += 4 * p.numel()
        return 2 * (coded + plain)
