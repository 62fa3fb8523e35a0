"""What goes wrong on purpose, and what is watched, in the ranks of a test; see processes.py.

A hook runs in the rank before its command line. Give it as functools.partial: it travels to the rank by its name.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def at_micro_batch(step: int, lane: int, number: int = signal.SIGKILL) -> None:
    """The rank that owns `lane` sends itself a signal in the middle of a step, before that lane's forward."""
    from trainer.engine import step as module

    seed_for = module.seed_for

    def wrapped(seed: int, at: int, of: int) -> None:
        if (at, of) == (step, lane):
            os.kill(os.getpid(), number)
        seed_for(seed, at, of)

    module.seed_for = wrapped  # type: ignore[assignment]


def at_evaluation(nth: int, of_rank: int, number: int = signal.SIGKILL) -> None:
    """Rank `of_rank` sends itself a signal at the first batch of its `nth` evaluation (from 1) of this start."""
    from trainer.engine import evaluate as module

    if of_rank != rank():
        return
    records, seen = module._records, [0]

    def wrapped(*arguments: Any) -> Any:
        seen[0] += 1
        if seen[0] == nth:
            os.kill(os.getpid(), number)
        return records(*arguments)

    module._records = wrapped


def at_save(step: int, function: str) -> None:
    """Rank zero is killed in the save of a step when it is about to call a function of the checkpoint module."""
    from trainer.engine import checkpoint as module

    save, original, now = module.save, getattr(module, function), [0]

    def saving(folder: Path, at: int, *more: Any) -> Any:
        now[0] = at
        return save(folder, at, *more)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        if now[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    module.save = saving
    setattr(module, function, wrapped)


def save_gradients(path: Path) -> None:
    """Rank zero writes the gradient of each step, {"step.parameter": tensor}, when the last step has been made."""
    from safetensors.torch import save_file

    from trainer.engine.step import Stepper

    gradients, found = Stepper.gradients, {}

    def wrapped(self: Stepper, batches: Any, step: int, totals: Any) -> Any:
        loss = gradients(self, batches, step, totals)
        found.update({f"{step}.{n}": p.grad.clone() for n, p in self.objective.named_parameters()})
        if rank() == 0 and step == self.task.recipe.loop.max_steps:
            save_file({name.replace("module.", ""): tensor for name, tensor in found.items()}, path)
        return loss

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def mean_of_means(path: Path) -> None:
    """The common mistake, as a control: each rank divides by its own count of labels."""
    from trainer.engine.step import Stepper

    save_gradients(path)
    gradients = Stepper.gradients

    def wrapped(self: Stepper, batches: Any, step: int, totals: Any) -> Any:
        own = sum(self.task.targets(b.inputs) for b in batches if b is not None)
        return gradients(self, batches, step, replace(totals, targets=own * self.runtime.world))

    Stepper.gradients = wrapped  # type: ignore[method-assign]


def noise_of_ranks(path: Path) -> None:
    """The other common mistake, as a control: dropout is seeded by the rank."""
    from trainer.engine import step as module

    save_gradients(path)
    seed_for = module.seed_for
    module.seed_for = lambda seed, step, lane: seed_for(seed, step, rank())  # type: ignore[assignment]
