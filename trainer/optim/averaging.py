"""Average weights exponentially over the steps, or the last checkpoints equally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.tensors import TensorFile


class ExponentialAverage:
    """Exponential moving average of named parameters, kept in fp32: average += (1 - d) * (parameter - average).

    It starts at the parameters of the first update. With warm-up, d = min(decay, (1 + step) / (10 + step)) as in
    TensorFlow's ExponentialMovingAverage, so that the first random weights have little effect. Everything is
    elementwise, so it works for complete parameters and for the shards of one rank.
    """

    def __init__(self, decay: float, *, warmup: bool = True) -> None:
        """`decay`: share of the average that a step keeps, in (0, 1)."""
        assert 0.0 < decay < 1.0, decay
        self.decay = decay
        self.warmup = warmup
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Update the average with the parameters after optimizer step `step` (from 1).

        Raises:
            CheckpointError: names or shapes differ from those of the average.
        """
        parameters = dict(named_parameters)
        if not self._average:
            self._average = {name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()}
            return
        _compare(_shapes(self._average), _shapes(parameters), "the moving average", "the model")
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for name, average in self._average.items():
            average.lerp_(parameters[name].detach().to(average.device, torch.float32), 1.0 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name, fp32, not copies; empty before the first update."""
        return dict(self._average)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy averages that `state` returned."""
        self._average = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}


def average_files(paths: Sequence[Path | str]) -> dict[str, Tensor]:
    """Return the mean of the weights in several safetensors files in fp32. One tensor at a time is read.

    Sums are float64. Tensors that are not floating point (counters, indices) have no mean and must be equal.

    Raises:
        CheckpointError: no file, an unreadable file, or other names, shapes or integer tensors; names both files.
    """
    if not paths:
        raise CheckpointError("there are no checkpoints to average")
    with ExitStack() as stack:
        files = [(Path(path), stack.enter_context(TensorFile(Path(path)))) for path in paths]
        first_path, first = files[0]
        for path, file in files[1:]:
            _compare(_file_shapes(first), _file_shapes(file), str(first_path), str(path))
        return {name: _mean(name, files) for name in first}


def _mean(name: str, files: Sequence[tuple[Path, TensorFile]]) -> Tensor:
    first = files[0][1][name]
    if not first.is_floating_point():
        for path, file in files[1:]:
            if not torch.equal(first, file[name]):
                raise CheckpointError(f"{name} ({first.dtype}) has no mean and differs in {files[0][0]} and {path}")
        return first
    total = first.to(torch.float64, copy=True)
    for _, file in files[1:]:
        total += file[name]
    return (total / len(files)).to(torch.float32)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _file_shapes(file: TensorFile) -> dict[str, list[int]]:
    return {name: file.shape(name) for name in file}


def _compare(ours: Mapping[str, list[int]], theirs: Mapping[str, list[int]], our: str, their: str) -> None:
    """Raise CheckpointError if a name or shape differs, and name the first one."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            have = [shapes.get(name, "missing") for shapes in (ours, theirs)]
            raise CheckpointError(f"{name} is {have[0]} in {our} but {have[1]} in {their}: these are different models")
