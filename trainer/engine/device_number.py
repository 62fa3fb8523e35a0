"""A number of the device that is read later."""

from __future__ import annotations

import torch
from torch import Tensor


class DeviceNumber:
    """A scalar that is copied to the host in the background. `float()` waits for the copy, not for what follows it."""

    def __init__(self, scalar: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if scalar.is_cuda:
            self._host = torch.empty_like(scalar, device="cpu", pin_memory=True).copy_(scalar, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = scalar.clone()

    def __float__(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)
