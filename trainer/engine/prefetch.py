"""Copy micro-batches to a GPU in the background: the next one, while the one before it is computed.

There are at most two on the device: the one in use, and the one that a second stream copies from pinned memory. A CPU
needs no copies.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from trainer.task.base import Batch


class Streams(Protocol):
    """Two streams of the device: one that copies, and the current one, which computes."""

    def copy(self, batch: Batch) -> tuple[Batch, Any]:
        """Queue copies on the stream that copies. Return the tensors, and the event that follows the copies."""

    def wait(self, event: Any) -> None:
        """Let what is queued from now on in the current stream wait for an event."""

    def keep(self, batch: Batch) -> None:
        """Let no copy reuse the memory of tensors until all is done that the current stream has queued for them."""


class CudaStreams:
    """The streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def copy(self, batch: Batch) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._stream):
            copied = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
            return copied, self._stream.record_event()

    def wait(self, event: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def keep(self, batch: Batch) -> None:
        for tensor in batch.values():
            tensor.record_stream(torch.cuda.current_stream(self._device))


def streams_of(device: torch.device) -> Streams | None:
    """Return the streams of a GPU. None for a CPU."""
    return CudaStreams(device) if device.type == "cuda" else None


class Prefetcher:
    """Copies one micro-batch before it is used."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._started: tuple[Batch, Batch, Any] | None = None  # tensors of the host, their copies, the event after them

    def start(self, batch: Batch) -> None:
        """Begin to copy the micro-batch that is used next, unless that was begun. A copy that was not used is freed."""
        if self._started is None or any(batch.get(name) is not tensor for name, tensor in self._started[0].items()):
            self._started = (batch, *self._streams.copy(batch))

    def take(self, batch: Batch) -> Batch:
        """Return a micro-batch on the device. What is queued from now on waits for its copy; the host does not.

        Tensors that `start` was not given, such as the memory of a model, are on the device already.
        """
        self.start(batch)
        assert self._started is not None
        (_, copied, event), self._started = self._started, None
        self._streams.wait(event)
        self._streams.keep(copied)
        return {name: copied.get(name, tensor) for name, tensor in batch.items()}
