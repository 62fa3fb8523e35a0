"""Weights and moments of a single process or DDP, to and from the checkpoint's files by parameter name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.optim.averaging import ExponentialAverage
from trainer.recipe import Recipe

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


class TrainingState:
    """The tensors of a run in training: weights, moments, and the moving average if there is one.

    Every rank holds all of it (single process and DDP), so that rank zero writes alone.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        self._recipe, self._model, self._optimizer, self._scaler = recipe, model, optimizer, scaler
        averaging = recipe.optim.averaging
        self.average = ExponentialAverage(averaging.decay) if averaging.kind == "ema" else None

    def after_step(self, step: int) -> None:
        if self.average is not None:
            self.average.update(self._model.named_parameters(), step)

    @contextlib.contextmanager
    def weights_to_judge(self) -> Iterator[None]:
        """The moving average's weights in place of the raw ones, where there is one."""
        if self.average is None or not self.average.state():
            yield
            return
        raw = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        copy_weights(self._model, self.average.state(), "the moving average")
        try:
            yield
        finally:
            copy_weights(self._model, raw, "the raw weights")

    def collect(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Files of the checkpoint, and what goes into its state.json."""
        weights = {name: p.detach() for name, p in self._model.named_parameters()}
        moments: dict[str, Tensor] = {}
        steps: dict[str, float | None] = {}
        for name, p in self._model.named_parameters():
            state = self._optimizer.state.get(p, {})
            steps[name] = float(state["step"]) if "step" in state else None
            moments |= {f"{name}.{m}": state[m] for m in self._moments if state.get(m) is not None}
        files = {"model.safetensors": weights, "optimizer.safetensors": moments}
        if self.average is not None:
            files["ema.safetensors"] = self.average.state()
        counted = {step for step in steps.values() if step is not None}
        assert len(counted) <= 1, "all parameters are stepped together"
        scaler = self._scaler.state_dict() if self._scaler is not None else None
        return files, {"optimizer_step": counted.pop() if counted else None, "scaler": scaler}

    def restore(self, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Puts a checkpoint's tensors back, bit for bit."""
        copy_weights(self._model, files["model.safetensors"], "model.safetensors")
        moments = files["optimizer.safetensors"]
        for name, p in self._model.named_parameters():
            found = {m: moments[f"{name}.{m}"].to(p.device) for m in self._moments if f"{name}.{m}" in moments}
            if found:
                step = (
                    {} if state["optimizer_step"] is None else {"step": self._step_tensor(p, state["optimizer_step"])}
                )
                self._optimizer.state[p] = {**step, **found}
        if self.average is not None:
            self.average.load(
                {k: t.to(next(self._model.parameters()).device) for k, t in files["ema.safetensors"].items()}
            )
        if self._scaler is not None and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])

    @property
    def _moments(self) -> tuple[str, ...]:
        return MOMENTS[self._recipe.optim.name]

    def _step_tensor(self, p: Tensor, step: float) -> Tensor:
        fused = any(group.get("fused") for group in self._optimizer.param_groups)
        return torch.tensor(step, dtype=torch.float32, device=p.device if fused else "cpu")


@torch.no_grad()
def copy_weights(model: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Copies weights into the model's parameters.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ weights.keys()) or [n for n, p in own.items() if p.shape != weights[n].shape]
    if wrong:
        raise CheckpointError(
            f"{what} does not fit the model of this recipe: {', '.join(wrong[:5])}"
            f"{' …' if len(wrong) > 5 else ''} differ in name or shape"
        )
    for name, p in own.items():
        p.copy_(weights[name])
