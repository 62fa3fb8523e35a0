"""What the patches of families need of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def autocast_device(tensor: Tensor) -> str:
    """Return the device type for autocast. The planner has tensors on the meta device."""
    return "cpu" if tensor.is_meta else tensor.device.type


class NoProbabilities(TorchFunctionMode):
    """Make tensors of zeros without memory, and drop what is written into them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros:
            return func(*args, **{**kwargs, "device": "meta"})
        if func in (Tensor.__setitem__, Tensor.scatter_) and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)
