"""The tensors of a run in training, to and from the files of a checkpoint, by parameter name under any engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.layerwise import LayerServer, fill_skeleton, is_skeleton, skeleton
from trainer.engine.runtime import Runtime
from trainer.errors import CheckpointError
from trainer.models.adapters import check_base, stored_parameters
from trainer.optim.averaging import ExponentialAverage
from trainer.recipe import Recipe
from trainer.tensors import Distributed, TensorFile, constants


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

    @property
    def _layerwise(self) -> bool:
        """Whether the evaluated model is a skeleton, whose layers are gathered when they are needed."""
        return is_skeleton(self._model)

    def average_bytes(self) -> int:
        """Return the bytes of the moving average of this rank, which the first step makes."""
        if self.average is None:
            return 0
        own = (self._engine.own_part(p) for _, p in self._parameters()) if self._layerwise else self._model.parameters()
        return 4 * sum(p.numel() for p in own)

    def after_step(self, step: int) -> None:
        if self.average is not None:
            self.average.update(((name, self._part(name, p)) for name, p in self._parameters()), step)

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Put the moving average into the evaluated model if there is one, otherwise the weights in training."""
        average = self.average.state() if self.average is not None else {}
        if self._layerwise:
            with self.served(average):
                yield
            return
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

    @contextlib.contextmanager
    def served(self, average: Mapping[str, Tensor] = MappingProxyType({})) -> Iterator[None]:
        """Serve a skeleton with the weights in training, or with parts of an `average`. All ranks."""
        if not self._layerwise:
            yield
            return
        parameters = dict(self._engine.parameters())

        def weight(name: str) -> Tensor:
            p = parameters[name]
            return self._engine.gathered(p, average[name]) if name in average else self._engine.weight(p)

        with LayerServer(self._runtime, self._model, weight).attached():
            yield

    def use(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Put other weights into the evaluated model. All ranks.

        Raises:
            CheckpointError: names or shapes differ. It names the `source`.
        """
        if self._layerwise:
            check_weights(self._model, weights, source)
            self._engine.load(weights, {}, None)
        else:
            copy_weights(self._model, weights, source)

    @torch.no_grad()
    def change(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights that were changed in a served skeleton into the engine."""
        if self._layerwise:
            parameters = dict(self._engine.parameters())
            for name, weight in weights.items():
                self._engine.fill(parameters[name], weight)

    def end_training(self) -> None:
        """Free what only a training needs. With an adapter, all ranks get a complete model, in which it is merged."""
        if self._layerwise:
            self._engine.release()
            self.average = None
            if self._base is not None:
                parameters = dict(self._engine.parameters())
                fill_skeleton(self._model, lambda name: self._engine.weight(parameters[name]).clone())

    def whole(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a complete model with these weights: the evaluated one, or a skeleton filled on the CPU."""
        if not self._layerwise:
            return self._model
        model = skeleton(self._model)
        fill_skeleton(model, lambda name: weights[name])
        return model

    def collect(self) -> tuple[dict[str, dict[str, Distributed]], dict[str, Any]]:
        """Return the tensors of a checkpoint by file, and what state.json gets from here.

        They are those in training. Under a sharded engine this rank has ranges of them.
        """
        weights: dict[str, Distributed] = {}
        moments: dict[str, Distributed] = {}
        for name, p in self._parameters():
            exact = self.sharded and not self._layerwise and not p.requires_grad  # see `_weight`
            weights[name] = self._model.get_parameter(name) if exact else self._engine.sharded_weight(p)
            moments |= {f"{name}.{m}": tensor for m, tensor in self._engine.moments(p).items()}
        files = {"model.safetensors": weights, "optimizer.safetensors": moments}
        if self.average is not None:
            parameters = dict(self._engine.parameters())
            files["ema.safetensors"] = {
                name: self._engine.sharded(parameters[name], part) for name, part in self.average.state().items()
            }
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
            if self.sharded:  # each evaluation gathers what is trained
                check_weights(self._model, weights, str(weights_file))
                self._load_frozen(weights)
            else:
                copy_weights(self._model, weights, str(weights_file))
            self._engine.load(weights, moments, state["optimizer_step"])
        if self.average is not None:
            with TensorFile(checkpoint / "ema.safetensors") as average:
                parameters = dict(self._engine.parameters())
                self.average.load(
                    {name: self._engine.part_of(parameters[name], tensor) for name, tensor in average.items()}
                )
        self._engine.load_scaler(state["scaler"])

    @torch.no_grad()
    def _load_frozen(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights that are not trained to the evaluated model, which keeps them in fp32."""
        for name, p in stored_parameters(self._model).items():
            if not p.is_meta and not p.requires_grad:
                p.copy_(weights[name])

    @torch.no_grad()
    def _gather(self) -> None:
        """Gather one parameter after another: all of them at once would take the memory of a second model."""
        for name, weight in self._weights():
            self._model.get_parameter(name).copy_(weight)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self._weight(name, p)) for name, p in self._parameters())

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._engine.parameters() if name in self._stored]

    def _part(self, name: str, p: nn.Parameter) -> Tensor:
        """Return what this rank averages of a weight."""
        return self._engine.own_part(p) if self._layerwise else self._weight(name, p)

    def _weight(self, name: str, p: nn.Parameter) -> Tensor:
        """Return the whole weight. A frozen one comes from the copy, because a sharded engine may round it to bf16."""
        if self.sharded and not self._layerwise and not p.requires_grad:
            return self._model.get_parameter(name)
        return self._engine.weight(p)


@torch.no_grad()
def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model's parameters, and into those of its constants that `weights` has.

    Checkpoints have no constants: a training takes them from the untrained model. Nor do they have the base of an
    adapter.

    Raises:
        CheckpointError: names or shapes differ. It names the `source`.
    """
    _match(model, weights, source, lambda p, weight: p.copy_(weight))


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes of weights with those of a model, as `copy_weights` does."""
    _match(model, weights, source, lambda p, weight: None)


def _match(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, visit: Callable[[Tensor, Tensor], object]
) -> None:
    own: dict[str, Tensor] = dict(stored_parameters(model))
    others = constants(model)
    wrong = sorted((own.keys() ^ weights.keys()) - others.keys())
    own |= {name: others[name] for name in others.keys() & weights.keys()}
    for name, p in own.items() if not wrong else ():
        weight = weights[name]  # a file reads it at every access
        if weight.shape == p.shape:
            visit(p, weight)
        else:
            wrong.append(name)
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the model of this recipe: {', '.join(wrong[:5])}"
            f"{' …' if len(wrong) > 5 else ''} differ in name or shape"
        )
