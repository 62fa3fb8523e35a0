"""What is chosen on `validation` after the training, and how the output layer takes it in.

A change of the output layer keeps the published model free of further parts: stock transformers gives the same outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.label_order import last_linear
from trainer.task.base import Record, Task

log = logging.getLogger("rankzero")
Array = np.ndarray[Any, Any]

LOWEST, HIGHEST = math.log(0.05), math.log(20.0)  # of the logarithm of a temperature
SMALLEST = 1e-300  # a probability of 0 has no logarithm
TOLERANCE = 1e-4  # of the changed model, in units of the outputs


def best_temperature(records: Sequence[Record]) -> float:
    """Return the temperature at which the mean loss of classification records is smallest.

    The loss is convex in 1 / temperature, so a search by the golden section finds the minimum.
    """
    names, logits = _logits(records)
    true = [names.index(record["target"]) for record in records]
    rows = np.arange(len(true))

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(1)
        return float((np.log(np.exp(scaled - top[:, None]).sum(1)) + top - scaled[rows, true]).mean())

    low, high, ratio = LOWEST, HIGHEST, (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if loss(first) <= loss(second):
            high = second
        else:
            low = first
    return math.exp((low + high) / 2)


def _logits(records: Sequence[Record]) -> tuple[list[str], Array]:
    """Return the names of the classes, and logits (rows, classes) up to a constant of each row."""
    names = list(records[0]["probabilities"])
    shares = np.array([[record["probabilities"][name] for name in names] for record in records], dtype=np.float64)
    return names, np.log(np.maximum(shares, SMALLEST))


def tempered(records: Sequence[Record], temperature: float) -> list[Record]:
    """Return the records with the probabilities at a temperature."""
    names, logits = _logits(records)
    powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    shares = (powers / powers.sum(1, keepdims=True)).tolist()
    return [
        {**record, "probabilities": dict(zip(names, row, strict=True))}
        for record, row in zip(records, shares, strict=True)
    ]


def output_layer(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return the layer that gives the logits, and its name; None if there is no such layer."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear) and hasattr(model, "trunk"):
        return "head", head
    return last_linear(model) if hasattr(model, "base_model") else None


@torch.no_grad()
def scale_outputs(task: Task, model: nn.Module, scale: Sequence[float], shift: Sequence[float]) -> dict[str, Tensor]:
    """Change the output layer so that each output is multiplied and moved. Return its parameters by name.

    Nothing is changed, and nothing returned, if there is no such layer, if it has no bias to move the outputs, or if
    the changed model does not give the expected outputs.
    """
    found = output_layer(model)
    if found is None or (found[1].bias is None and any(shift)):
        return {}
    (name, layer), device = found, next(model.parameters()).device
    batch = {key: value.to(device) for key, value in task.collate(task.encode(task.toy_rows)).items()}
    training, before = [module for module in model.modules() if module.training], {}
    model.eval()
    outputs = task.logits(model, batch).float()
    before = {key: parameter.clone() for key, parameter in layer.named_parameters()}
    by, plus = outputs.new_tensor(scale), outputs.new_tensor(shift)
    layer.weight.mul_(by[:, None])
    if layer.bias is not None:
        layer.bias.mul_(by).add_(plus)
    wrong = ((task.logits(model, batch).float() - outputs * by - plus) / by).abs().max()
    for module in training:
        module.training = True
    if not bool(wrong <= TOLERANCE):
        for key, parameter in layer.named_parameters():
            parameter.copy_(before[key])
        log.warning("%s does not give the outputs of the model: it stays as trained", name)
        return {}
    return {f"{name}.{key}": parameter.detach() for key, parameter in layer.named_parameters()}
