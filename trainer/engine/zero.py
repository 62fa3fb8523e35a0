"""Weights and moments under DeepSpeed's ZeRO, by its private calls: tested with DeepSpeed 0.19.8.

Stages 1 and 2 keep the fp32 weights and moments of a group of parameters in one flat tensor, of which each rank holds a
part; stage 3 keeps of every parameter a padded part on each rank. What was tried is in tests/test_engines.py: each
engine saves, loads and saves again, and the files must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.storage import MOMENTS, Storage, of_parameter, one_step
from trainer.optim.clipping import idle_groups

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def leave_out_idle_groups(zero: Any) -> None:
    """Let DeepSpeed clip by the norm of the parameters whose rate is not 0 in a step, as the other engines do.

    It adds up the norms of its groups (of sub-groups in stage 3). Those of idle groups become 0, unless they are
    invalid: DeepSpeed gives -1 for them.
    """
    third = hasattr(zero, "fp16_groups")
    parts = zero.fp16_groups if third else zero.params_in_partition

    def counted(norm: Callable[..., Any], params: Any, *before: Any) -> Any:
        found = norm(*before, params)
        part = next(number for number, group in enumerate(parts) if group is params)
        number = zero.sub_group_to_group_id[part] if third else part
        if idle_groups(zero.optimizer.param_groups)[number]:
            found = torch.as_tensor(found)
            return torch.where(found >= 0, torch.zeros_like(found), found)
        return found

    direct, offloaded = zero.get_grad_norm_direct, zero.complete_grad_norm_calculation_for_cpu_offload
    zero.get_grad_norm_direct = lambda gradients, params: counted(direct, params, gradients)
    zero.complete_grad_norm_calculation_for_cpu_offload = lambda params: counted(offloaded, params)


class ZeroStorage(Storage):
    """`Storage` of a DeepSpeed engine."""

    def __init__(self, model: nn.Module, engine: Any) -> None:
        self.engine, self.zero = engine, engine.optimizer
        self.stage = engine.zero_optimization_stage()
        super().__init__(model, self.zero.optimizer)
        self._linked = False

    # -- out -------------------------------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        if self.stage < 3 and self.optimizer.state and not self._linked:
            self._link()
        return super().parameters()

    @torch.no_grad()
    def weight(self, p: nn.Parameter) -> Tensor:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if p.requires_grad:
            found: Tensor = safe_get_full_fp32_param(p)
            return found
        if self.stage < 3:
            return p.detach().float()
        with deepspeed.zero.GatheredParameters([p]):
            return p.detach().float().clone()

    def moments(self, p: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not p.requires_grad:
            return {}
        return {name: safe_get_full_optimizer_state(p, name) for name in self._kept()}

    def step(self) -> float | None:
        return one_step(self.optimizer.state[flat] for flat in self._flats() if flat in self.optimizer.state)

    def scaler(self) -> dict[str, Any] | None:
        if self.engine.fp16_enabled():
            return {name: getattr(self.zero.loss_scaler, name) for name in SCALER}
        return None

    # -- back ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        self._make_states({name.rpartition(".")[2] for name in moments}, step)
        for name, p in self.parameters():
            self._put(p, weights[name], of_parameter(moments, name))
        if self.stage < 3:
            self.zero.update_lp_params()
        else:
            self._refresh()

    def restore_scaler(self, state: dict[str, Any] | None) -> None:
        if not self.engine.fp16_enabled() or not state:
            return
        if "scale" in state:  # torch's
            state = {"cur_scale": state["scale"]}
        for name, value in state.items():
            setattr(self.zero.loss_scaler, name, value)

    def _make_states(self, names: set[str], step: float | None) -> None:
        """The states that torch would make at its first step."""
        for flat in self._flats() if names else []:
            count = {} if step is None else {"step": torch.tensor(step, dtype=torch.float32)}
            self.optimizer.state[flat] = {**count, **{m: torch.zeros_like(flat) for m in names}}
        self._linked = False

    def _put(self, p: nn.Parameter, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
        import deepspeed.utils as calls
        from deepspeed import zero

        if not p.requires_grad:
            if self.stage < 3:
                p.data.copy_(weight)
            else:
                with zero.GatheredParameters([p], modifier_rank=0):
                    if self.engine.global_rank == 0:
                        p.data.copy_(weight)
            return
        if self.stage < 3:
            calls.safe_set_full_fp32_param(p, weight)
            for m, tensor in moments.items():
                calls.safe_set_full_optimizer_state(p, tensor, m)
        else:  # the full calls forget the padding of parameters whose size the ranks do not divide
            calls.safe_set_local_fp32_param(p, self._part(p, weight))
            for m, tensor in moments.items():
                calls.safe_set_local_optimizer_state(p, self._part(p, tensor), m)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _flats(self) -> list[Tensor]:
        zero = self.zero
        flats = zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat
        return list(flats)

    def _kept(self) -> list[str]:
        states = [self.optimizer.state[flat] for flat in self._flats() if flat in self.optimizer.state]
        return [name for name in MOMENTS if states and isinstance(states[0].get(name), Tensor)]

    def _link(self) -> None:
        """DeepSpeed links parameters to the states of all groups after stepping the first: those of others fail."""
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()
        self._linked = True

    def _part(self, p: Any, tensor: Tensor) -> Tensor:
        """This rank's padded part of a whole tensor."""
        size, rank = p.ds_tensor.numel(), self.zero._get_param_partition_rank(p)
        own = tensor.reshape(-1)[rank * size : (rank + 1) * size]
        part = torch.zeros(size, dtype=torch.float32)
        part[: own.numel()] = own
        return part.to(p.ds_tensor.device)

    def _refresh(self) -> None:
        """Brings the copies that stage 3 computes with up to the fp32 weights."""
        zero = self.zero
        if zero.persistent_parameters:  # small ones, that stay gathered: they would be passed over
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()
