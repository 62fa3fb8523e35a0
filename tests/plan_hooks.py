"""Measure the model states of a rank in a real run by its tensors. hooks.py describes how hooks work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def storages(tensors: Iterable[Any]) -> int:
    """Return the bytes of the storages of tensors, each once. Of a DTensor that of this rank."""
    found = {}
    for tensor in tensors:
        if tensor is not None:
            local = getattr(tensor, "_local_tensor", tensor)
            storage = local.untyped_storage()
            found[storage.data_ptr() if storage.nbytes() else id(storage)] = storage.nbytes()
    return sum(found.values())


def save_states(path: Path) -> None:
    """Write {"parameters", "gradients", "optimizer", "host"} of each rank in bytes, as in its first step."""
    from trainer.engine.session import Session
    from trainer.engine.step import Stepper

    init, seen = Session.__init__, {}

    def made(self: Session, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        engine: Any = self.runtime.engine
        if engine.spec.zero_stage:
            _watch_zero(engine._zero, engine.spec.zero_stage, seen)
        else:
            _watch(self.stepper, seen)
        call = self.stepper.__class__.__call__

        def stepped(stepper: Stepper, *more: Any) -> Any:
            result = call(stepper, *more)
            if "parameters" not in seen:
                seen.update(_after(self))
                path.with_name(f"{path.name}-{os.environ.get('RANK', '0')}").write_text(json.dumps(seen))
            return result

        Stepper.__call__ = stepped  # type: ignore[method-assign]

    Session.__init__ = made  # type: ignore[method-assign, assignment]


def _watch(stepper: Any, seen: dict[str, int]) -> None:
    gradients = type(stepper).gradients

    def wrapped(self: Any, *arguments: Any) -> Any:
        loss = gradients(self, *arguments)
        seen["gradients"] = storages(p.grad for p in self.objective.parameters())
        return loss

    type(stepper).gradients = wrapped


def _watch_zero(zero: Any, stage: int, seen: dict[str, int]) -> None:
    """Record gradients: whole ones before stage 1 reduces them, the rank's part under stages 2 and 3."""
    if stage == 1:
        reduce = zero.reduce_gradients

        def reducing(*arguments: Any, **more: Any) -> Any:
            seen["gradients"] = storages(p.grad for group in zero.bit16_groups for p in group)
            return reduce(*arguments, **more)

        zero.reduce_gradients = reducing
        return
    step = zero._optimizer_step

    def stepping(number: int) -> Any:
        if stage == 2:
            gradient = zero.single_partition_of_fp32_groups[number].grad
            seen["gradients"] = seen.get("gradients", 0) + gradient.numel() * gradient.element_size()
        else:
            seen["gradients"] = storages([zero.grad_partitions_flat_buffer])
        return step(number)

    zero._optimizer_step = stepping


def _after(session: Any) -> dict[str, int]:
    engine = session.runtime.engine
    stage, zero = engine.spec.zero_stage, getattr(engine, "_zero", None)
    states = engine._states if stage else engine.optimizer.state
    moments = [t for state in states.values() for t in state.values() if hasattr(t, "numel")]
    parameters: list[Any] = [p for _, p in engine.parameters()]
    masters: list[Any] = []
    if stage == 3:
        whole = [p.data for p in parameters if p.ds_persist]
        masters = [f for f in zero.fp32_partitioned_groups_flat if not _within(f, zero.lp_param_buffer)]
        parameters = [*whole, *(p.ds_tensor for p in parameters), *engine._frozen.values()]
    elif stage:
        masters = list(zero.single_partition_of_fp32_groups)
    copy = [*session.model.parameters(), *session.model.buffers()] if engine.spec.sharded else []
    return {
        "parameters": storages(p.data for p in parameters),
        "optimizer": storages([*moments, *masters]),
        "host": storages(copy),
    }


def _within(tensor: Any, buffer: Any) -> bool:
    return bool(tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr())
