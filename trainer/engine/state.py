"""The tensors of a run in training, to and from the files of a checkpoint, by parameter name under any engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.runtime import Runtime
from trainer.errors import CheckpointError
from trainer.models.adapters import check_base, stored_parameters
from trainer.optim.averaging import ExponentialAverage
from trainer.recipe import Recipe
from trainer.tensors import TensorFile, constants


class TrainingState:
    """Weights, moments, and the moving average if there is one. All ranks enter all methods.

    Args:
        recipe: of the run.
        runtime: its engine trains the model.
        model: the one that is evaluated. Under a sharded engine it is a copy, which gets the weights before each
            evaluation. Otherwise it is the trained model itself.
        base: of an adapter, see `base_facts`. Checkpoints refer to it.
    """

    def __init__(self, recipe: Recipe, runtime: Runtime, model: nn.Module, base: dict[str, Any] | None = None) -> None:
        self._runtime, self._model, self._engine = runtime, model, runtime.engine
        self._base, self._stored = base, stored_parameters(model).keys()
        self.sharded = runtime.engine.spec.sharded
        averaging = recipe.optim.averaging
        self.average = ExponentialAverage(averaging.decay) if averaging.kind == "ema" else None

    def after_step(self, step: int) -> None:
        if self.average is not None:
            self.average.update(self._weights(), step)

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Put the moving average into the evaluated model if there is one, otherwise the weights in training."""
        average = self.average.state() if self.average is not None else {}
        if not self.sharded and not average:
            yield
            return
        device = next(self._model.parameters()).device
        raw = {} if self.sharded else {name: p.detach().clone() for name, p in stored_parameters(self._model).items()}
        self._model.to(self._runtime.device)
        if average:
            copy_weights(self._model, average, "the moving average")
        else:
            self._gather()
        try:
            yield
        finally:
            if raw:
                copy_weights(self._model, raw, "the raw weights")
            self._model.to(device)

    def collect(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return the tensors of a checkpoint by file (on rank zero), and what state.json gets from here.

        The tensors are copies under a sharded engine. Otherwise they are those in training.
        """
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, p in self._parameters():
            weight, own_moments = self._weight(name, p), self._engine.moments(p)
            if self._runtime.main:
                weights[name] = self._copy_if_sharded(weight)
                moments |= {f"{name}.{m}": self._copy_if_sharded(tensor) for m, tensor in own_moments.items()}
        files = {"model.safetensors": weights, "optimizer.safetensors": moments}
        if self.average is not None:
            average = self.average.state().items()
            files["ema.safetensors"] = {name: self._copy_if_sharded(tensor) for name, tensor in average}
        extra = {"optimizer_step": self._engine.optimizer_step(), "scaler": self._engine.scaler_state()}
        return files, {**extra, "base": self._base} if self._base else extra

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Restore a checkpoint's tensors bit for bit, whatever engine has saved them. One tensor is read at a time.

        Raises:
            CheckpointError: its adapter was trained on other base weights, or names or shapes differ.
        """
        if self._base is not None:
            check_base(state.get("base") or {}, self._base, checkpoint)
        weights_file, moments_file = checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors"
        with TensorFile(weights_file) as weights, TensorFile(moments_file) as moments:
            copy_weights(self._model, weights, str(weights_file))
            self._engine.load(weights, moments, state["optimizer_step"])
        if self.average is not None:
            with TensorFile(checkpoint / "ema.safetensors") as average:
                self.average.load({name: tensor.to(self._runtime.device) for name, tensor in average.items()})
        self._engine.load_scaler(state["scaler"])

    @torch.no_grad()
    def _gather(self) -> None:
        """Gather one parameter after another: all of them at once would take the memory of a second model."""
        for name, weight in self._weights():
            self._model.get_parameter(name).copy_(weight)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._weight(name, p)) for name, p in self._parameters())

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._engine.parameters() if name in self._stored]

    def _weight(self, name: str, p: nn.Parameter) -> Tensor:
        """Return the whole weight. A frozen one comes from the copy, because a sharded engine may round it to bf16."""
        if self.sharded and not p.requires_grad:
            return self._model.get_parameter(name)
        return self._engine.weight(p)

    def _copy_if_sharded(self, tensor: Tensor) -> Tensor:
        """Copy a gathered tensor, because its buffer may be used for the next one."""
        return tensor.detach().to("cpu", torch.float32, copy=True) if self.sharded else tensor


@torch.no_grad()
def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model's parameters, and into those of its constants that `weights` has.

    Checkpoints have no constants: a training takes them from the untrained model. Nor do they have the base of an
    adapter.

    Raises:
        CheckpointError: names or shapes differ. It names the `source`.
    """
    own: dict[str, Tensor] = dict(stored_parameters(model))
    others = constants(model)
    wrong = sorted((own.keys() ^ weights.keys()) - others.keys())
    own |= {name: others[name] for name in others.keys() & weights.keys()}
    for name, p in own.items() if not wrong else ():
        weight = weights[name]  # a file reads it at every access
        if weight.shape == p.shape:
            p.copy_(weight)
        else:
            wrong.append(name)
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the model of this recipe: {', '.join(wrong[:5])}"
            f"{' …' if len(wrong) > 5 else ''} differ in name or shape"
        )
