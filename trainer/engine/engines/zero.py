"""DeepSpeed's ZeRO, partly by its private calls: tested with DeepSpeed 0.19.8.

Stages 1 and 2 keep the fp32 weights and moments of a group of parameters in one flat tensor. Each rank holds a part of
it. Stage 3 keeps a padded part of every parameter on each rank. tests/test_engines.py saves, loads and saves again
under each engine, and compares the files.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, cast

import deepspeed
import deepspeed.ops
import deepspeed.utils
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trainer.engine.engines.base import STEP, Engine, Update, common_step, moment_names
from trainer.engine.engines.zero_config import deepspeed_config, limit_gathered, read_config_file
from trainer.errors import UsageError
from trainer.optim.clipping import idle_groups
from trainer.tensors import Distributed, ShardedTensor

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class ZeroEngine(Engine):
    """ZeRO of stage 1, 2 or 3. DeepSpeed clips, steps and handles fp16 overflows inside of the last backward."""

    def _make_accelerator(self) -> Accelerator:
        warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # from DeepSpeed's own calls
        if self.options.on_cpu:
            # DeepSpeed looks in it for communication in shared memory, which would be compiled for a minute and leave
            # 69 MB per rank in /dev/shm. Reading it would compile test programs in a temporary folder
            deepspeed.ops.__compatible_ops__ = {}
            os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # Accelerate's launcher sets this from its file, and the plugin would call it a conflict with our config
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
        precision, options = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), self.options
        config = deepspeed_config(self._stage, precision, options.accumulation, options.clip_norm, read_config_file())
        if precision == "fp16" and not get_accelerator().is_fp16_supported():  # DeepSpeed checks after loading a model
            raise UsageError(
                "fp16: DeepSpeed does not support it on this processor, which lacks AVX-512 FP16 and AMX; "
                "mixed_precision: no or bf16"
            )
        plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
        accelerator = self._accelerator(self._process_group(), deepspeed_plugin=plugin)
        unset_hf_deepspeed_config()  # under stage 3 transformers would load empty weights for DeepSpeed's own init
        return accelerator

    @property
    def _stage(self) -> int:
        assert self.spec.zero_stage is not None
        return self.spec.zero_stage

    def prepare(self, objective: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        exact = self._partition(objective) if self._stage == 3 else {}
        if exact:
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            limit_gathered(zero, sum(self.shape(p).numel() for p in exact))
        super().prepare(objective, model, optimizer)
        self._frozen = {p: part for p, part in exact.items() if not p.requires_grad}
        self._engine = self.accelerator.deepspeed_engine_wrapped.engine
        self._zero = self._engine.optimizer
        self._linked = False
        leave_out_idle_groups(self._zero, self._stage)
        for p, part in exact.items():
            self._set_part(p, part)
        if exact:
            self.filled()

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Run a forward and its backward inside. Accelerate passes `last` on to DeepSpeed, which refuses `no_sync`."""
        self.accelerator.sync_gradients = last
        yield

    def step(self) -> Update:
        """Return the result of the step that the last backward has made."""
        if not self._zero.overflow:
            norm = float(self._engine.get_global_grad_norm())
            return Update(norm, finite=math.isfinite(norm))
        retry = self._engine.fp16_enabled() and self._zero.loss_scaler.cur_scale > 1.0
        return Update(math.inf, finite=False, retry=retry)

    # -- the state, by parameter -----------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        if self._stage < 3 and self._states and not self._linked:
            self._link()
        return super().parameters()

    @torch.no_grad()
    def weight(self, p: nn.Parameter) -> Tensor:
        if self._stage == 3:
            return self.gathered(p, self.own_part(p))
        if not p.requires_grad:
            return p.detach().float()
        weight: Tensor = deepspeed.utils.safe_get_full_fp32_param(p)
        return weight

    def drop_gradients(self) -> None:
        self._zero.zero_grad()
        if self._stage < 3:  # as in a step that overflowed. Stage 3 writes over the gradients of its last step
            self._zero.averaged_gradients = {}
            self._zero.micro_step_id = INITIAL_MICRO_STEP_ID

    def moment_bytes(self) -> int:
        return self._moment_bytes(self._zero.optimizer, self._flat_weights())

    def shape(self, p: Any) -> torch.Size:
        return p.shape if self._stage < 3 else torch.Size(p.ds_shape)

    def sharded(self, p: Any, part: Tensor) -> Distributed:
        return part if self._stage < 3 else self._padded_range(p, lambda: part)

    def sharded_weight(self, p: nn.Parameter) -> Distributed:
        if p.requires_grad:
            return self._range(p)
        return self.weight(p) if self._stage < 3 else self.sharded(p, self.own_part(p))

    def _range(self, p: Any, moment: str | None = None) -> ShardedTensor:
        """Return this rank's range of the fp32 weights, or of a moment, of a parameter that is trained."""
        if self._stage == 3:
            return self._padded_range(p, partial(self._zero.get_local_fp32_param, p, moment))
        fragment = p._hp_mapping  # None on a rank whose part of the flat tensor has nothing of it
        if fragment is None:
            return ShardedTensor(p.shape, 0, 0, lambda: p.detach().new_empty(0))
        place = fragment.lp_fragment_address
        return ShardedTensor(p.shape, place.start, place.numel, lambda: fragment.get_hp_fragment(moment).detach())

    def _padded_range(self, p: Any, padded: Callable[[], Tensor]) -> ShardedTensor:
        """Return this rank's range of a tensor that is padded to a multiple of the ranks, as in stage 3."""
        size = p.ds_tensor.numel()
        start = self._zero._get_param_partition_rank(p) * size
        count = max(0, min(size, self.shape(p).numel() - start))
        return ShardedTensor(self.shape(p), start, count, lambda: padded().detach().reshape(-1)[:count])

    def moments(self, p: nn.Parameter) -> Mapping[str, Distributed]:
        if not p.requires_grad:
            return {}
        states = [self._states[flat] for flat in self._flat_weights() if flat in self._states]
        names = [name for name, t in states[0].items() if name != STEP and isinstance(t, Tensor)] if states else []
        return {name: self._range(p, name) for name in names}

    @torch.no_grad()
    def fill(self, p: nn.Parameter, weight: Tensor) -> None:
        self._set_part(p, self._padded_part(p, weight))

    def filled(self) -> None:
        self._update_computed_weights()

    def own_part(self, p: Any) -> Tensor:
        if self._stage < 3:
            return super().own_part(p)
        trained = deepspeed.utils.safe_get_local_fp32_param
        part: Tensor = trained(p) if p.requires_grad else self._frozen.get(p, p.ds_tensor)
        return part.detach().to(self.accelerator.device)

    def gathered(self, p: nn.Parameter, part: Tensor) -> Tensor:
        whole: Tensor = self._zero._fp32_state_allgather(p, part) if self._stage == 3 else part
        return whole

    def part_of(self, p: nn.Parameter, tensor: Tensor) -> Tensor:
        if self._stage < 3:
            return super().part_of(p, tensor)
        return self._padded_part(p, tensor).to(self.accelerator.device)  # where `own_part` is, also with offload

    def release(self) -> None:
        self._states.clear()

    def optimizer_step(self) -> float | None:
        return common_step(self._states[flat] for flat in self._flat_weights() if flat in self._states)

    def scaler_state(self) -> dict[str, Any] | None:
        if self._engine.fp16_enabled():
            return {name: getattr(self._zero.loss_scaler, name) for name in SCALER}
        return None

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        names = moment_names(moments)
        for flat in self._flat_weights() if names else []:  # as torch makes them in its first step
            count = {} if step is None else {STEP: torch.tensor(step, dtype=torch.float32)}
            self._states[flat] = {**count, **{m: torch.zeros_like(flat) for m in sorted({*chain(*names.values())})}}
        self._linked = False
        for name, p in self.parameters():
            if p.requires_grad:
                own = {m: moments[f"{name}.{m}"] for m in names.get(name, [])}
                self._load_trained(p, weights[name], own)
            elif name in weights:  # the base of an adapter is loaded already
                if self._stage == 3:
                    self.fill(p, weights[name])
                else:
                    p.data.copy_(weights[name])
        if self._stage < 3:
            self._zero.update_lp_params()
        else:
            self._update_computed_weights()

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        if not self._engine.fp16_enabled() or not state:
            return
        if "scale" in state:  # saved by torch's scaler
            state = {"cur_scale": state["scale"]}
        for name, value in state.items():
            setattr(self._zero.loss_scaler, name, value)

    def _load_trained(self, p: nn.Parameter, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
        if self._stage < 3:
            deepspeed.utils.safe_set_full_fp32_param(p, weight)
            for m, tensor in moments.items():
                deepspeed.utils.safe_set_full_optimizer_state(p, tensor, m)
        else:  # the full calls ignore the padding of parameters whose size is no multiple of the ranks
            self.fill(p, weight)
            for m, tensor in moments.items():
                deepspeed.utils.safe_set_local_optimizer_state(p, self._padded_part(p, tensor), m)

    # -- DeepSpeed's inner tensors ---------------------------------------------------------------------------------

    @property
    def _states(self) -> Any:
        """The states of the optimizer that DeepSpeed wraps, by flat tensor."""
        return self._zero.optimizer.state

    def _flat_weights(self) -> list[Tensor]:
        zero = self._zero
        flats = zero.single_partition_of_fp32_groups if self._stage < 3 else zero.fp32_partitioned_groups_flat
        return list(flats)

    def _link(self) -> None:
        """Link parameters to their states again. DeepSpeed links all groups after it has stepped the first one."""
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()
        self._linked = True

    def _partition(self, objective: nn.Module) -> dict[Any, Tensor]:
        """Partition the parameters. Return this rank's parts in fp32, unless DeepSpeed trains these themselves.

        DeepSpeed would cast complete parameters before it partitions them: all placeholders would get memory.
        """
        plugin: Any = self.accelerator.state.deepspeed_plugin
        deepspeed.zero.Init(module=objective, config_dict_or_path=plugin.deepspeed_config)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        exact: dict[Any, Tensor] = {}
        for p in cast("Iterator[Any]", objective.parameters()) if dtype else ():
            exact[p] = p.ds_tensor.data
            rounded = exact[p].to(dtype)
            p.ds_tensor.data = rounded.pin_memory() if exact[p].is_pinned() else rounded  # in host memory: offload
            p.data = p.data.to(dtype)
        return exact

    def _padded_part(self, p: Any, tensor: Tensor) -> Tensor:
        """Return this rank's padded part of a whole tensor."""
        size, rank = p.ds_tensor.numel(), self._zero._get_param_partition_rank(p)
        own = tensor.reshape(-1)[rank * size : (rank + 1) * size]
        part = torch.zeros(size, dtype=torch.float32, device=p.ds_tensor.device)
        part[: own.numel()] = own
        return part

    def _set_part(self, p: Any, part: Tensor) -> None:
        """Set this rank's part of a parameter. `_update_computed_weights` follows."""
        if p.requires_grad:
            deepspeed.utils.safe_set_local_fp32_param(p, part)
            return
        if p in self._frozen:
            self._frozen[p] = part
        p.ds_tensor.data.copy_(part)
        p.ds_secondary_tensor = None  # the copy of hpZ is made again

    def _update_computed_weights(self) -> None:
        """Copy the fp32 weights of stage 3 to those that it computes with."""
        zero = self._zero
        if zero.persistent_parameters:  # small ones that stay gathered, and would be left out
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()  # hpZ makes them again
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()


def leave_out_idle_groups(zero: Any, stage: int) -> None:
    """Make DeepSpeed clip by the norm of the parameters whose rate is not 0 in a step, as the other engines do.

    DeepSpeed adds up the norms of its groups (of sub-groups in stage 3). The norms of idle groups become 0, unless they
    are invalid, which DeepSpeed marks by -1.
    """
    groups = zero.fp16_groups if stage == 3 else zero.params_in_partition

    def without_idle(norm: Callable[..., Any], params: Any, *before: Any) -> Any:
        value = norm(*before, params)
        index = next(index for index, group in enumerate(groups) if group is params)
        group = zero.sub_group_to_group_id[index] if stage == 3 else index
        if idle_groups(zero.optimizer.param_groups)[group]:
            value = torch.as_tensor(value)
            return torch.where(value >= 0, torch.zeros_like(value), value)
        return value

    direct, offloaded = zero.get_grad_norm_direct, zero.complete_grad_norm_calculation_for_cpu_offload
    zero.get_grad_norm_direct = lambda gradients, params: without_idle(direct, params, gradients)
    zero.complete_grad_norm_calculation_for_cpu_offload = lambda params: without_idle(offloaded, params)
