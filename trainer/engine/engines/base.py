"""The interface of an engine. `Engine` itself implements it for engines that hold the whole model on every rank.

Names and shapes are those of the whole model, and numbers are fp32, under every engine. So the files of a checkpoint
are the same for all of them. Methods that say "all ranks" must be entered by all ranks in the same order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, KwargsHandler
from torch import Tensor, nn

from trainer.data_parallel import DataParallel
from trainer.engine import rendezvous
from trainer.engine.device_number import DeviceNumber
from trainer.engine_specs import EngineSpec
from trainer.errors import UsageError
from trainer.optim.choices import is_elementwise, moments_per_weight
from trainer.optim.clipping import clip, clip_on_device, idle_parameters, square_sum
from trainer.tensors import Distributed

STEP = "step"  # the count of steps in the state of an optimizer, equal for all parameters


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine.

    Attributes:
        on_cpu: no GPU is used.
        accumulation: micro-batches of each rank in a step.
        clip_norm: largest gradient norm. 0 = no clipping.
        float8: linear layers multiply in fp8 in training, and the rest of the model in bf16.
    """

    on_cpu: bool
    accumulation: int = 1
    clip_norm: float = 0.0
    float8: bool = False

    @property
    def backend(self) -> str:
        return "gloo" if self.on_cpu else "nccl"


@dataclass(frozen=True)
class Update:
    """The result of an attempt at an optimizer step.

    Attributes:
        grad_norm: before clipping, over the parameters that the step updates.
        finite: whether the weights were updated. None = they were if the norm is finite, which has not been read.
        retry: fp16 gradients overflowed and the loss scale was lowered: run the same rows again.
    """

    grad_norm: SupportsFloat
    finite: bool | None
    retry: bool = False


class Engine:
    """Trains one model. It has an accelerator from the start, and model and optimizer after `prepare`."""

    rehearses_last = False  # the last backward of a rehearsal is that of a step, which frees unsharded gradients
    model: nn.Module  # as trained, without wrappers
    objective: nn.Module  # the wrapped module whose forward computes the loss
    optimizer: Any  # as wrapped by Accelerate

    def __init__(self, spec: EngineSpec, options: EngineOptions) -> None:
        self.spec, self.options = spec, options
        self.accelerator = self._make_accelerator()
        self.data_parallel = DataParallel(self.accelerator.process_index, self.accelerator.num_processes)

    @property
    def fills(self) -> bool:
        """Whether it can shard a model of placeholders and get its weights one by one, see `fill`."""
        return self.spec.never_complete

    @property
    def precision(self) -> str:
        """The value of `mixed_precision`: no, bf16, fp16 or fp8. Accelerate computes fp8 runs in bf16."""
        return "fp8" if self.options.float8 else str(self.accelerator.mixed_precision)

    def convert(self, model: nn.Module) -> None:
        """Replace layers by those of the precision, before they are compiled. Parameters and their names stay.

        Raises:
            UsageError: the model has no layer that can multiply in fp8.
        """
        if self.options.float8:
            from trainer.models.float8 import convert_layers  # torchao may not be installed

            convert_layers(model, emulate=self.options.on_cpu)

    def prepare(self, objective: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over the training of `model`, whose loss `objective` computes.

        Raises:
            UsageError: this engine cannot train this model, or cannot shard the state of this optimizer.
        """
        if self.spec.sharded and not is_elementwise(optimizer):
            raise UsageError(
                f"engine {self.spec.name} shards the state of the optimizer, and {type(optimizer).__name__} updates a "
                "weight from others of the same tensor: use a config with ddp, or another optim.name"
            )
        self.model = model
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)

    def _make_accelerator(self) -> Accelerator:
        """Return the Accelerator for the environment that a launcher has set up.

        An Accelerate config says which engine runs, on what, and in which precision. What belongs to a step comes from
        the recipe: accumulation, clipping, rates.
        """
        return self._accelerator(cpu=self.options.on_cpu)

    def _accelerator(self, *handlers: KwargsHandler, **arguments: Any) -> Accelerator:
        return Accelerator(
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=self.options.accumulation, adjust_scheduler=False, sync_with_dataloader=False
            ),
            step_scheduler_with_optimizer=False,
            mixed_precision="bf16" if self.options.float8 else None,  # None: that of the Accelerate config
            kwargs_handlers=list(handlers),
            **arguments,
        )

    def _process_group(self) -> InitProcessGroupKwargs:
        return InitProcessGroupKwargs(backend=self.options.backend, timeout=rendezvous.GROUP_TIMEOUT)

    # -- a step ----------------------------------------------------------------------------------------------------

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Run what an engine does only in its first backward. `loss` runs a forward that counts for nothing."""

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Run a forward and its backward inside. Ranks add up their gradients in the last backward of a step only."""
        self.accelerator.sync_gradients = last
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
            yield

    def communication(self) -> float | None:
        """Return the seconds by which communication prolongs the backward of a step. None if that is not known."""
        return None

    def step(self) -> Update:
        """Clip and update, after the last backward. Nothing is updated where a gradient is not finite. All ranks.

        The norm is the same on all ranks, so that all take the same branch without asking each other.
        """
        gradients, norm = self._norm()
        if self.asynchronous and self._skips_on_device(gradients):
            return self._step_on_device(gradients, norm)
        value, scaler = float(norm), self.accelerator.scaler  # waits for the device
        if math.isfinite(value):  # otherwise no update follows. Moments are kept at rate 0, too
            clip(gradients, value, self.options.clip_norm or math.inf)
        if scaler is None:
            if math.isfinite(value):
                self.optimizer.step()
            self.optimizer.zero_grad()
            return Update(value, finite=math.isfinite(value))
        scale = scaler.get_scale()
        self.optimizer.step()
        self.optimizer.zero_grad()
        skipped = self.accelerator.optimizer_step_was_skipped
        return Update(value, finite=not skipped, retry=skipped and scale > 1.0)

    @property
    def asynchronous(self) -> bool:
        """Whether the device works in the background, so that reading a number of it waits."""
        return self.accelerator.device.type == "cuda"

    def _skips_on_device(self, gradients: list[Tensor]) -> bool:
        """Whether the device can leave out an update: by the fused kernel of Adam and AdamW, once there are moments.

        Offloaded gradients are not on the device. A loss scaler must know at once whether to run the same rows again.
        """
        inner, device = self.optimizer.optimizer, self.accelerator.device
        fused = isinstance(inner, torch.optim.Adam) and all(group["fused"] for group in inner.param_groups)
        there = all(gradient.device.type == device.type for gradient in gradients)
        return fused and bool(inner.state) and there and self.accelerator.scaler is None

    def _step_on_device(self, gradients: list[Tensor], norm: Tensor) -> Update:
        """Clip and update without reading the norm. The kernel updates nothing where `found_inf` is 1."""
        if self.options.clip_norm:
            clip_on_device(gradients, norm, self.options.clip_norm)
        inner = self.optimizer.optimizer
        inner.found_inf = (~torch.isfinite(norm)).float()
        try:
            self.optimizer.step()
        finally:
            del inner.found_inf
        self.optimizer.zero_grad()
        return Update(DeviceNumber(norm), finite=None)

    def _norm(self) -> tuple[list[Tensor], Tensor]:
        """Return this rank's parts of the gradients and the norm of the whole gradient, a float64 scalar."""
        self.accelerator.unscale_gradients()
        idle, device = idle_parameters(self.optimizer.param_groups), self.accelerator.device
        found = [(id(p) in idle, self._own_part(p.grad)) for p in self.objective.parameters() if p.grad is not None]
        sums = [square_sum([g for is_idle, g in found if is_idle == wanted], device) for wanted in (False, True)]
        total, idle_total = self._sum_over_parts(torch.stack(sums)).unbind()
        # A gradient that is not finite would spoil moments even at rate 0.
        return [g for _, g in found], torch.where(torch.isfinite(idle_total), total, idle_total).sqrt()

    def _own_part(self, tensor: Tensor) -> Tensor:
        """Return the part of a sharded tensor that is on this rank."""
        return tensor

    def _sum_over_parts(self, sums: Tensor) -> Tensor:
        """Return numbers added up over the ranks that hold parts of a tensor."""
        return sums

    # -- the state, by parameter -----------------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and parameters. A tied parameter is listed once."""
        return list(self.model.named_parameters())

    def weight(self, p: nn.Parameter) -> Tensor:
        """Return the whole parameter in fp32. All ranks."""
        return p.detach()

    def fill(self, p: nn.Parameter, weight: Tensor) -> None:
        """Set a parameter to a whole weight. All ranks have the weight and call this alike."""
        raise NotImplementedError(f"engine {self.spec.name} gets its weights with the model")

    def filled(self) -> None:
        """Use the weights that `fill` has set. All ranks."""

    def own_part(self, p: nn.Parameter) -> Tensor:
        """Return the part of a parameter that this rank averages, in fp32: all of it, unless the engine can gather."""
        return self.weight(p)

    def gathered(self, p: nn.Parameter, part: Tensor) -> Tensor:
        """Return the whole tensor of which each rank has the `own_part` of a parameter. All ranks."""
        return part

    def part_of(self, p: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor, see `own_part`."""
        return tensor.to(p.device)

    def sharded(self, p: nn.Parameter, part: Tensor) -> Distributed:
        """Return the `own_part` of a parameter as a whole tensor, or as this rank's range of one."""
        return part

    def sharded_weight(self, p: nn.Parameter) -> Distributed:
        """Return the whole parameter in fp32, or this rank's range of it."""
        return self.sharded(p, self.own_part(p))

    def end_forward(self) -> None:
        """Undo what a forward leaves that no backward follows. All ranks."""

    def release(self) -> None:
        """Free what only a training needs: gradients and the state of the optimizer."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def drop_gradients(self) -> None:
        """Free gradients of backwards that no step follows."""
        self.accelerator.sync_gradients = True  # Accelerate ignores the call between the micro-batches of a step
        self.optimizer.zero_grad()

    def moment_bytes(self) -> int:
        """Return the bytes of the moments that the optimizer makes on this rank's device in its first step."""
        groups = self.optimizer.param_groups
        return self._moment_bytes(self.optimizer.optimizer, [self.own_part(p) for g in groups for p in g["params"]])

    def _moment_bytes(self, optimizer: torch.optim.Optimizer, parts: Iterable[Tensor]) -> int:
        device = self.accelerator.device.type
        numbers = sum(part.numel() for part in parts if part.device.type == device)
        return round(4 * moments_per_weight(optimizer) * numbers)

    def shape(self, p: nn.Parameter) -> torch.Size:
        """Return the shape of the whole parameter."""
        return p.shape

    def moments(self, p: nn.Parameter) -> Mapping[str, Distributed]:
        """Return the optimizer's moments of a parameter, or this rank's ranges, in fp32. None before the first step."""
        state = self.optimizer.state.get(p, {})
        moments = {name: value for name, value in state.items() if name != STEP and isinstance(value, Tensor)}
        pack: Any = getattr(self.optimizer.optimizer, "pack_moments", dict)  # moments that are no plain tensors
        return dict(pack(moments))

    def optimizer_step(self) -> float | None:
        """Return the optimizer's own count of steps. None if it keeps no count."""
        state = self.optimizer.state
        return common_step(state[p] for _, p in self.parameters() if p in state)

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of the loss scaler (fp16). None without one."""
        scaler = self.accelerator.scaler
        return None if scaler is None else dict(scaler.state_dict())

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: float | None) -> None:
        """Restore weights and moments ("NAME.exp_avg") bit for bit. All ranks.

        Names and shapes have been checked. Here the model has its weights already: it is the one that is evaluated.
        """
        self._load_moments(moments, step)

    def _load_moments(self, moments: Mapping[str, Tensor], step: float | None) -> None:
        names = moment_names(moments)
        for name, p in self.parameters():
            if name in names:
                count = {} if step is None else {STEP: self._step_tensor(p, step)}
                own = {m: moments[f"{name}.{m}"] for m in names[name]}
                # numbers stay on the CPU, where torch's optimizers keep them
                own = {m: t if t.ndim == 0 else self._shard_like(p, t) for m, t in own.items()}
                unpack: Any = getattr(self.optimizer.optimizer, "unpack_moments", None)
                self.optimizer.state[p] = {**count, **(unpack(p, own) if unpack else own)}

    def _step_tensor(self, p: Tensor, step: float) -> Tensor:
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return torch.tensor(step, dtype=torch.float32, device=p.device if fused else "cpu")

    def _shard_like(self, p: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return a whole tensor in the layout of a parameter."""
        return tensor.to(p.device)

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        """Restore the loss scaler from its own state, or from the scale that DeepSpeed has saved."""
        if (scaler := self.accelerator.scaler) is not None and state:
            deepspeed = "cur_scale" in state
            scaler.load_state_dict({**scaler.state_dict(), "scale": state["cur_scale"]} if deepspeed else state)


def moment_names(moments: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the moments of each parameter, from keys such as "NAME.exp_avg"."""
    found: dict[str, list[str]] = {}
    for key in moments:
        name, _, moment = key.rpartition(".")
        found.setdefault(name, []).append(moment)
    return found


def common_step(states: Any) -> float | None:
    """Return the one count of steps in the states of an optimizer."""
    counts = {float(state[STEP]) for state in states if STEP in state}
    assert len(counts) <= 1, "all parameters are stepped together"
    return counts.pop() if counts else None
