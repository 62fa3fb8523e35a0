"""Weights and moments under FSDP2: parameters are DTensors, each rank holding a slice of the first dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.engine.storage import Storage, of_parameter


class ShardedStorage(Storage):
    """`Storage` of FSDP2."""

    def weight(self, p: nn.Parameter) -> Tensor:
        return whole(p.detach())

    def moments(self, p: nn.Parameter) -> dict[str, Tensor]:
        return {name: whole(moment) for name, moment in super().moments(p).items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        for name, p in self.parameters():
            _local(p).copy_(_local(_like(p, weights[name])))
            if own := of_parameter(moments, name):
                count = {} if step is None else {"step": self._count(_local(p), step)}
                self.optimizer.state[p] = {**count, **{m: _like(p, t) for m, t in own.items()}}


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on every rank. All ranks enter."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(p: Any, tensor: Tensor) -> Tensor:
    """A tensor that every rank has, cut like a parameter; nothing is sent."""
    if not isinstance(p, DTensor):
        return tensor.to(p.device, copy=True)
    return cast(Tensor, distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None))
