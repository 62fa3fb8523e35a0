"""Evaluate a model whose parameters are spread over the ranks, without a complete copy on any of them.

The evaluated model is a skeleton: the structure of the trained one, with parameters that have no memory. Its layers are
gathered when a forward needs them, and freed when it needs the next one. What is outside of layers (embeddings, norms,
the head) stays for the whole evaluation.

Ranks evaluate different batches, and a search takes another number of forwards for each. So ranks need no common
schedule: a rank that needs a layer requests it, and all ranks take part in gathering what any of them requests. A rank
that is done with its batch takes part until all are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.runtime import Runtime

DONE = -1  # requested by a rank that is done with its batch
OUTSIDE = 0  # the unit of all parameters outside of layers


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters have no memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    found: nn.Module = copy.deepcopy(model, memo)
    return found


def is_skeleton(model: nn.Module) -> bool:
    return any(p.is_meta for p in model.parameters())


def fill_skeleton(model: nn.Module, weight: Callable[[str], Tensor]) -> None:
    """Give a skeleton the weights that `weight` returns for the names of its parameters, on the CPU and without copies.

    Weights of a file are mapped: they take memory only while it is free for the file.
    """
    places = _places(model)
    for name, p in list(model.named_parameters()):
        filled = nn.Parameter(weight(name).detach().to("cpu", torch.float32), p.requires_grad)
        for module, own in places[id(p)]:
            module._parameters[own] = filled


class _Requesting(dict[str, Any]):
    """The parameters of a module. Access to one by its name requests the layer that it belongs to."""

    def __init__(self, parameters: dict[str, Any], request: Callable[[], None]) -> None:
        super().__init__(parameters)
        self._request = request

    def __getitem__(self, name: str) -> Any:
        self._request()
        return super().__getitem__(name)


class LayerServer:
    """Gathers layers of a skeleton on request. All ranks have one.

    Args:
        runtime: of this rank.
        model: the skeleton.
        weight: returns a whole parameter by its name. All ranks.
    """

    def __init__(self, runtime: Runtime, model: nn.Module, weight: Callable[[str], Tensor]) -> None:
        self._runtime, self._weight = runtime, weight
        self._model, self._without_memory = model, dict(model.named_parameters())
        self._units, self._unit_of = _units(model)
        self._gathered: int | None = None  # the layer that this rank has

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Serve the skeleton inside. All ranks enter and leave together, each after `finish`."""
        plain = {module: module._parameters for module in self._unit_of}
        for module, number in self._unit_of.items():
            module._parameters = _Requesting(module._parameters, partial(self._request, number))
        self._give(OUTSIDE)
        self._model.layer_server = self  # type: ignore[assignment]
        try:
            yield
        finally:
            del self._model.layer_server
            for module, parameters in plain.items():
                module._parameters = parameters
            self._take(OUTSIDE)
            self._gathered = None

    def finish(self) -> None:
        """Take part in what other ranks request until all of them are done with their batches. All ranks."""
        self._take(self._gathered)
        while any(number != DONE for number in self._serve(DONE)):
            pass

    def _request(self, number: int) -> None:
        if number != self._gathered:
            self._take(self._gathered)
            self._serve(number)

    def _serve(self, number: int) -> list[int]:
        """Gather what all ranks request now, and keep layer `number`. Return the requests of all ranks."""
        self._runtime.heartbeat("an evaluation with layers of all ranks")
        requests = self._runtime.all_of(number)
        for other in sorted({*requests} - {DONE}):
            self._give(other, keep=other == number)
        return requests

    def _give(self, number: int, *, keep: bool = True) -> None:
        """Gather the parameters of a unit. All ranks."""
        for name, places in self._units[number].items():
            weight = self._weight(name)
            if keep:
                given = nn.Parameter(weight, requires_grad=False)
                for module, own in places:
                    module._parameters[own] = given
        if keep and number != OUTSIDE:
            self._gathered = number

    def _take(self, number: int | None) -> None:
        """Free the parameters of a unit."""
        if number is None:
            return
        for name, places in self._units[number].items():
            for module, own in places:
                module._parameters[own] = self._without_memory[name]
        if number != OUTSIDE:
            self._gathered = None


def finish_batch(model: nn.Module) -> None:
    """Wait until all ranks are done with their batches, if the layers of the model are served. All ranks."""
    server: LayerServer | None = getattr(model, "layer_server", None)
    if server is not None:
        server.finish()


Unit = dict[str, list[tuple[nn.Module, str]]]  # where each parameter is, by its name in the model


def _units(model: nn.Module) -> tuple[list[Unit], dict[nn.Module, int]]:
    """Return the parameters outside of layers and those of each layer, and the unit of each module.

    The layers are in the outermost module lists. A parameter of two units is outside of layers.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    outer = [m for name, m in lists if not any(name.startswith(f"{other}.") for other, _ in lists if other != name)]
    layers = [layer for module in outer for layer in module]
    unit_of = {module: number for number, layer in enumerate(layers, 1) for module in layer.modules()}
    places = _places(model)
    units: list[Unit] = [{} for _ in range(len(layers) + 1)]
    for name, p in model.named_parameters():
        owners = {unit_of.get(module, OUTSIDE) for module, _ in places[id(p)]}
        units[owners.pop() if len(owners) == 1 else OUTSIDE][name] = places[id(p)]
    return units, unit_of


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return the modules that have a parameter, and its name there, by the id of the parameter."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for own, p in module._parameters.items():
            if p is not None:
                places.setdefault(id(p), []).append((module, own))
    return places
