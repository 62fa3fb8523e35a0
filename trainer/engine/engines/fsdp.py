"""FSDP2: parameters are DTensors, of which each rank holds a slice of the first dimension."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.engine import rendezvous
from trainer.engine.engines.base import Engine
from trainer.errors import UsageError
from trainer.models.layers import layer_classes
from trainer.tensors import Distributed, ShardedTensor

DIMENSIONS = ("dp_replicate", "dp_shard", "tp", "cp", "sp")  # of Accelerate's ParallelismConfig
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FSDPEngine(Engine):
    """`fully_shard` by torch."""

    rehearses_last = True

    def _make_accelerator(self) -> Accelerator:
        _check_parallelism()
        if self.options.on_cpu:
            # Accelerate allows FSDP only where a type of GPU runs. This is private; another engine would be an error.
            PartialState(backend="gloo", timeout=rendezvous.GROUP_TIMEOUT)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=_switched_on("FSDP_RESHARD_AFTER_FORWARD", "true"),
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,  # it would silently untie embeddings
            cpu_offload=_switched_on("FSDP_OFFLOAD_PARAMS", "false") or None,
        )
        accelerator = self._accelerator(*([] if self.options.on_cpu else [self._process_group()]), fsdp_plugin=plugin)
        if dtype := DTYPES.get(accelerator.mixed_precision):
            plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        return accelerator

    def prepare(self, objective: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over the training of `model`, whose layers are gathered and freed one by one."""
        if any(hasattr(module, "backward_pass") for module in model.modules()):
            raise UsageError(
                f"engine {self.spec.name}: {type(model).__name__} runs its reversible layers again in its own backward "
                "pass, where their weights are sharded; use a config with ddp, zero1, zero2 or zero3"
            )
        self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(model)
        super().prepare(objective, model, optimizer)

    def _own_part(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def _sum_over_parts(self, sums: Tensor) -> Tensor:
        return cast("Tensor", self.accelerator.reduce(sums, "sum")) / self._copies

    @property
    def _copies(self) -> int:
        """The groups of ranks that hold the same parts (HSDP), of which each one counts every part."""
        parallelism = self.accelerator.parallelism_config
        return 1 if parallelism is None else int(parallelism.dp_replicate_size)

    def weight(self, p: nn.Parameter) -> Tensor:
        return _gathered(p.detach())

    @torch.no_grad()
    def fill(self, p: nn.Parameter, weight: Tensor) -> None:
        self._own_part(p).copy_(_rows(p, weight))

    def own_part(self, p: nn.Parameter) -> Tensor:
        return self._own_part(p.detach())

    def gathered(self, p: nn.Parameter, part: Tensor) -> Tensor:
        return _gathered(_like(p, part))

    def part_of(self, p: nn.Parameter, tensor: Tensor) -> Tensor:
        return _rows(p, tensor).to(p.device)

    def end_forward(self) -> None:
        for module in self.objective.modules():  # a root stays complete until its backward
            if isinstance(module, FSDPModule):
                module.reshard()

    def sharded(self, p: Any, part: Tensor) -> Distributed:
        if not isinstance(p, DTensor):
            return part
        rows, count = _row_numbers(p), part.numel() if self._first_copy else 0
        start = int(rows[0]) * (p.numel() // len(p)) if count else 0
        return ShardedTensor(p.shape, start, count, lambda: part.reshape(-1))

    @property
    def _first_copy(self) -> bool:
        """Whether this rank is in the first of the groups that hold the same parts (HSDP)."""
        return self.data_parallel.rank < self.data_parallel.size // self._copies

    def moments(self, p: nn.Parameter) -> Mapping[str, Distributed]:
        found: Any = super().moments(p)
        return {  # a number is the same on all ranks
            name: self.sharded(p, moment.to_local()) if isinstance(moment, DTensor) else moment
            for name, moment in found.items()
        }

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        for name, p in self.parameters():
            if name not in weights:  # of the base of an adapter, which is loaded already
                continue
            self.fill(p, weights[name])
        self._load_moments(moments, step)

    def _shard_like(self, p: Any, tensor: Tensor) -> Tensor:
        """Return this rank's slice of a tensor that every rank has or reads. Nothing is sent."""
        return _like(p, _rows(p, tensor).to(p.device, copy=True))


def _check_parallelism() -> None:
    """Raise UsageError if `parallelism_config` (HSDP) does not fit the ranks, or asks for tensor parallelism."""
    if not _switched_on("ACCELERATE_USE_PARALLELISM_CONFIG", "false"):
        return
    sizes = {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1")) for name in DIMENSIONS}
    copies, parts = sizes["dp_replicate"], sizes["dp_shard"]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if other := [name for name in DIMENSIONS[2:] if sizes[name] > 1]:
        raise UsageError(
            f"parallelism_config_{other[0]}_size={sizes[other[0]]}: only dp_replicate and dp_shard are used"
        )
    if copies * parts != ranks or parts < 2:
        raise UsageError(
            f"parallelism_config: {copies} copies (dp_replicate_size) in {parts} parts (dp_shard_size) are not the "
            f"{ranks} ranks of this run; their product must be, with 2 parts or more"
        )


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _rows(p: Any, tensor: Tensor) -> Tensor:
    """Return a view of the part of a whole tensor that this rank has of a parameter. No other part is read."""
    if not isinstance(p, DTensor):
        return tensor
    rows = _row_numbers(p)
    return tensor[int(rows[0]) : int(rows[-1]) + 1] if len(rows) else tensor[:0]


def _row_numbers(p: DTensor) -> Tensor:
    """Return the numbers of the rows that this rank has."""
    return distribute_tensor(torch.arange(len(p)), p.device_mesh, p.placements, src_data_rank=None).to_local()


def _like(p: Any, part: Tensor) -> Tensor:
    """Return the tensor of which each rank has the part of a parameter."""
    if not isinstance(p, DTensor):
        return part
    return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _switched_on(variable: str, default: str) -> bool:
    return os.environ.get(variable, default).lower() == "true"
