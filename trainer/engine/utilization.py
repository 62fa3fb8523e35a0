"""How well a device is used: floating-point operations of the training per second, and their share of its peak (MFU).

PyTorch's FLOP counter runs the real loss, forward and backward, on a copy of the model without memory ("meta"), for the
first shapes of micro-batches. The operations are a polynomial in rows and widths, so the others follow from a fit. As
for MFU in the PaLM paper (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B) operations that are run
twice to save memory count once, and so do those of a frozen part that no gradient needs.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from trainer.concatenation import PLACES
from trainer.task.base import Batch

log = logging.getLogger("rankzero")

FloatArray = npt.NDArray[np.float64]
Shape = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]  # of the tensors of a micro-batch, by name
MOST_COUNTED = 64  # shapes that are counted, if the fit stays wrong
TOLERANCE = 0.01  # of the fit on shapes that it has not seen
CONFIRMED = 2  # such shapes in a row after which no more are counted

# Dense peak of matrix products in 1e12 operations per second, by words in the name of the device: in bf16 or fp16, in
# TF32, and in fp32. From NVIDIA's data sheet of each product. The first name that fits counts.
PEAKS = {
    "B200": (2250.0, 1125.0, 75.0),
    "GH200": (989.5, 494.7, 67.0),
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.5, 494.7, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100": (989.5, 494.7, 67.0),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.1, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "A40": (149.7, 74.8, 37.4),
    "A10": (125.0, 62.5, 31.2),
    "V100": (125.0, 15.7, 15.7),
    "T4": (65.0, 8.1, 8.1),
}


def peak_of(device: str, precision: str, tf32: bool) -> float | None:
    """Return the dense peak of a device in operations per second, or None if the device is not known.

    Args:
        device: its name, as torch.cuda.get_device_name gives it.
        precision: "no", "bf16", "fp16" or "fp8". In fp8 the peak is that of bf16, in which most operations still run.
        tf32: fp32 matrix products are computed in TF32.
    """
    known = next((rates for name, rates in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)
    if known is None or precision not in ("no", "bf16", "fp16", "fp8"):
        return None
    return known[0 if precision != "no" else 1 if tf32 else 2] * 1e12


@dataclass
class Work:
    """Work of this rank in one step or several.

    Attributes:
        shapes: of its micro-batches, with their numbers. Fillers are left out.
        data_wait: seconds in which it waited for rows.
        rank_wait: seconds in which it waited for other ranks before a step.
        communication: seconds by which communication prolonged its backwards. None if that is not known.
    """

    shapes: Counter[Shape] = field(default_factory=Counter)
    data_wait: float = 0.0
    rank_wait: float = 0.0
    communication: float | None = None

    def add(self, other: Work) -> None:
        self.shapes.update(other.shapes)
        self.data_wait += other.data_wait
        self.rank_wait += other.rank_wait
        if other.communication is not None:
            self.communication = (self.communication or 0.0) + other.communication


def shape_of(batch: Batch) -> Shape:
    """Return what the operations of a micro-batch depend on."""
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items())


class FlopMeter:
    """Operations of the forward and backward of micro-batches, by their shapes.

    Args:
        objective: the loss, before an engine has changed its modules. It stays as it is.
        inputs: names of the token inputs, whose widths matter.
    """

    def __init__(self, objective: nn.Module, inputs: tuple[str, ...]) -> None:
        task = objective.task
        tensors = itertools.chain(objective.parameters(), objective.buffers())
        memo: dict[int, Any] = {id(task): task, **{id(tensor): _without_memory(tensor) for tensor in tensors}}
        self._objective: nn.Module = copy.deepcopy(objective, memo)
        self._inputs = inputs
        self._counted: dict[Shape, int] = {}
        self._fit: FloatArray | None = None
        self._most: FloatArray | None = None  # of each term per row, in the counted shapes
        self._confirmed = 0
        self.error: str | None = None

    def total(self, shapes: Counter[Shape]) -> float:
        """Return the operations of micro-batches of these shapes; NaN if the model cannot be counted (`error`)."""
        return float(sum(times * self._of(shape) for shape, times in shapes.items()))

    def count(self, shape: Shape) -> int:
        """Return the operations of a micro-batch by running it without memory.

        Raises:
            RuntimeError, NotImplementedError: the model needs the values of tensors.
        """
        batch = {name: torch.zeros(size, dtype=dtype, device="meta") for name, size, dtype in shape}
        with NoValues(), FlopCounterMode(display=False) as counter, torch.enable_grad():
            output = self._objective(**batch)
            loss = output[0] if isinstance(output, tuple) else output
            # loss.backward() would turn function modes off
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
        self._objective.zero_grad()
        return counter.get_total_flops()

    def _of(self, shape: Shape) -> float:
        """Return the operations of a shape: counted, or from the fit once it has been right for unseen shapes."""
        if shape in self._counted or self.error is not None:
            return self._counted.get(shape, math.nan)
        features = self._features(shape)
        guess = math.nan if self._fit is None else float(features @ self._fit)
        enough = len(self._counted) >= MOST_COUNTED or (self._confirmed >= CONFIRMED and self._between(features))
        if enough:
            return guess
        try:
            found = self._counted[shape] = self.count(shape)
        except (RuntimeError, NotImplementedError) as error:
            self.error = str(error).partition("\n")[0]
            log.info("no mfu: the operations of this model cannot be counted (%s)", self.error)
            return math.nan
        self._confirmed = self._confirmed + 1 if abs(guess - found) <= TOLERANCE * found else 0
        table = np.array([self._features(known) for known in self._counted])
        scale = np.abs(table).max(0).clip(min=1)  # columns of like size, for the rank that lstsq decides
        self._most = (table / table[:, :1]).max(0)
        self._fit = np.linalg.lstsq(table / scale, np.array([*self._counted.values()], float), rcond=None)[0] / scale
        return found

    def _between(self, features: FloatArray) -> bool:
        """Whether no term per row is larger than in all counted shapes: a fit is not followed beyond them."""
        return self._most is not None and bool((features / features[0] <= self._most).all())

    def _features(self, shape: Shape) -> FloatArray:
        """Return the terms of the polynomial: rows, each times a width and times two widths, and the labels."""
        sizes = {name: size for name, size, _ in shape}
        rows = next(iter(sizes.values()))[0]
        widths = [sizes[name][1] for name in self._inputs]
        if concatenated := [size[0] for name, size in sizes.items() if name.endswith(PLACES)]:
            rows, widths = 1, concatenated
        pairs = [a * b for a, b in itertools.combinations_with_replacement(widths, 2)]
        return np.array([*(rows * term for term in (1, *widths, *pairs)), math.prod(sizes["labels"])], float)


class Utilization:
    """What a logged step says about the use of the devices.

    Args:
        ranks: number of devices.
        meter: of rank zero's model, or None if there is no peak to compare with.
        peak: operations per second of a device.
    """

    def __init__(self, ranks: int, meter: FlopMeter | None = None, peak: float | None = None) -> None:
        self._ranks, self._meter, self._peak = ranks, meter, peak

    def of(self, work: Work, tokens: int, seconds: float) -> dict[str, float]:
        """Return values for metrics.jsonl.

        Args:
            work: of rank zero in an interval.
            tokens: of all ranks, without padding.
            seconds: length of the interval.

        Returns:
            tokens_per_second_per_device; data_wait, rank_wait and, if known, communication as shares of the time. With
            a known peak also flops_per_second of rank zero's device, and mfu: its share of the peak.
        """
        found = {"tokens_per_second_per_device": tokens / seconds / self._ranks}
        found |= {"data_wait": work.data_wait / seconds, "rank_wait": work.rank_wait / seconds}
        if work.communication is not None:
            found["communication"] = work.communication / seconds
        if self._meter is not None and self._peak:
            rate = self._meter.total(work.shapes) / seconds
            if math.isfinite(rate):
                found |= {"flops_per_second": rate, "mfu": rate / self._peak}
        return found


class NoValues(TorchFunctionMode):
    """Answer False where code asks for the value of a tensor without memory, such as whether a batch has no padding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__bool__", "__contains__"):
            return False
        return func(*args, **(kwargs or {}))


def _without_memory(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
