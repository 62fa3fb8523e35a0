"""DistributedDataParallel: every rank holds the whole model, and the ranks average their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from trainer.engine.engines.base import Engine


class DDPEngine(Engine):
    """DDP by torch."""

    def _make_accelerator(self) -> Accelerator:
        handlers = DistributedDataParallelKwargs(gradient_as_bucket_view=True), self._process_group()
        return self._accelerator(*handlers, cpu=self.options.on_cpu)

    def communication(self) -> float | None:
        """Return what DDP measured last. It times the first ten backwards of a start, and then every hundredth."""
        wrapped: Any = self.objective
        measured = wrapped._get_ddp_logging_data()
        if "backward_comm_time" not in measured:
            return None
        return float(max(0, measured["backward_comm_time"] - measured["backward_compute_comm_overlap_time"])) / 1e9

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Run one backward and drop its gradient, because DDP regroups its gradient buckets after the first one.

        With three or more ranks the order of a sum depends on the grouping. Without this, the first step of a resumed
        run would differ in its last bits.
        """
        with self.accumulate(last=True):
            self.accelerator.backward(loss() * 0.0)
        self.optimizer.zero_grad()
