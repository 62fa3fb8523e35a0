"""What is chosen on `validation` after the training, and how the output layer takes it in.

A change of the output layer keeps the published model free of further parts: stock transformers gives the same outputs.
"""

from __future__ import annotations

import logging
import math
import sys
from array import array
from collections.abc import Collection, Iterator, Sequence
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


def best_temperature(records: Collection[Record]) -> float:
    """Return the temperature at which the mean loss of classification records is smallest.

    The loss is convex in 1 / temperature, so a search by the golden section finds the minimum.
    """
    names, logits, targets = _logits(records)
    true = [names.index(target) for target in targets]
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


def _logits(records: Collection[Record]) -> tuple[list[str], Array, list[str]]:
    """Return the names of the classes, logits (rows, classes) up to a constant of each row, and the true classes."""
    names, shares, targets = list(next(iter(records))["probabilities"]), array("d"), []
    for record in records:
        shares.extend(record["probabilities"][name] for name in names)
        targets.append(sys.intern(record["target"]))
    return names, np.log(np.maximum(np.frombuffer(shares).reshape(-1, len(names)), SMALLEST)), targets


def tempered(records: Collection[Record], temperature: float) -> Iterator[Record]:
    """Yield target and probabilities of the records at a temperature."""
    names, logits, targets = _logits(records)
    powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    shares = powers / powers.sum(1, keepdims=True)
    for target, row in zip(targets, shares, strict=True):
        yield {"target": target, "probabilities": dict(zip(names, row.tolist(), strict=True))}


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
