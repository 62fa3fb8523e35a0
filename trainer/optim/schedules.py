"""Learning-rate schedules: one pure function of the step and of the share of the training that is done.

No scheduler object, so nothing to prepare, save or step out of turn: a resumed run asks for the same step and gets the
same rate, on any number of ranks. The only schedule that remembers anything is plateau; its memory is `Plateau`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainer.recipe.sections import OptimConfig

INVERSE_SQRT_TIMESCALE = 10_000  # steps; used without warm-up, as in transformers' get_inverse_sqrt_schedule


def lr_multiplier(
    optim: OptimConfig, step: int, progress: float, *, depth: int = 0, plateau_factor: float = 1.0
) -> float:
    """The factor on a group's base rate for the step that is about to be made: schedule, layer and unfreezing in one.

    A layer's rate is the schedule's times `layer_decay` ** depth (discriminative fine-tuning), and 0 as long as gradual
    unfreezing has not come down to it: depth d begins to move when the share `unfreeze` * d of the training is done
    (both Howard & Ruder 2018; with unfreeze = 1 / epochs one more layer moves in each epoch).

    Rates that count steps (warm-up, inverse_sqrt, noam) use `step`, so the first step already moves. Rates that run to
    the end of the training use what is done *before* the step, so the last step still moves:

    - linear, cosine: after warm-up, exactly the rate that transformers' get_linear_schedule_with_warmup and
      get_cosine_schedule_with_warmup use at the same step. They need the total number of steps; ours is not known
      before the data have been read, and is estimated as (steps done) / (share done).
    - inverse_sqrt: min(step / warmup, sqrt(warmup / step)).
    - noam: Vaswani et al. (2017), eq. 3, scaled so that its peak is 1 at the end of warm-up. In this scale it is
      inverse_sqrt, and the paper's own rates come with lr = (d_model * warmup_steps) ** -0.5.
    - slanted_triangular: Howard & Ruder (2018), eq. 3, rising for `cut_fraction` of the training and falling from the
      peak to peak / `ratio`. It has its own warm-up and ignores `warmup_steps`.
    - constant and plateau: 1 after warm-up; plateau times `plateau_factor`, which comes from `Plateau.update`.

    Args:
        step: number of the step about to be made, from 1.
        progress: share of the planned training done before this step, in [0, 1]: rows consumed / (epochs * rows), or
            (step - 1) / max_steps; the larger one where both end the run.
        depth: of the group (`build_optimizer`): 0 the head, 1 the top layer of the trunk, and so on down.
        plateau_factor: product of the reductions so far.
    """
    assert step >= 1, step
    assert 0.0 <= progress <= 1.0, progress
    if progress + 1e-9 < optim.unfreeze * depth:  # three fifths are a little more than 3 times a fifth
        return 0.0
    return optim.layer_decay**depth * _scheduled(optim, step, progress, plateau_factor)


def _scheduled(optim: OptimConfig, step: int, progress: float, plateau_factor: float) -> float:
    warmup = optim.warmup_steps
    if optim.schedule == "slanted_triangular":
        return _slanted_triangular(progress, optim.cut_fraction, optim.ratio)
    if step <= warmup:
        return step / warmup * (plateau_factor if optim.schedule == "plateau" else 1.0)
    if optim.schedule in ("inverse_sqrt", "noam"):
        return _inverse_sqrt(step, warmup)
    if optim.schedule == "linear":
        return 1.0 - _share_after_warmup(step - 1, warmup, progress)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * _share_after_warmup(step - 1, warmup, progress)))
    return plateau_factor if optim.schedule == "plateau" else 1.0


def _share_after_warmup(done: int, warmup: int, progress: float) -> float:
    """(done - warmup) / (total - warmup) with total = done / progress, for done >= warmup; in [0, 1]."""
    if done <= warmup:
        return 0.0
    return min(1.0, progress * (done - warmup) / (done - warmup * progress))


def _inverse_sqrt(step: int, warmup: int) -> float:
    if warmup:
        return math.sqrt(warmup / step)
    return math.sqrt(INVERSE_SQRT_TIMESCALE / (INVERSE_SQRT_TIMESCALE + step - 1))


def _slanted_triangular(progress: float, cut_fraction: float, ratio: float) -> float:
    if progress < cut_fraction:
        height = progress / cut_fraction
    else:
        height = 1.0 - (progress - cut_fraction) / (1.0 - cut_fraction)
    return (1.0 + height * (ratio - 1.0)) / ratio


@dataclass
class Plateau:
    """Decides when the rate falls: after `patience` evaluations in a row without an improvement of the metric.

    Every rank holds one and gives it the same reduced metric, so all take the same decision. An improvement is a metric
    better than the best so far by more than `min_delta`; NaN is none. `state()` is plain JSON and restores by
    `from_state`.
    """

    factor: float
    """What the rate is multiplied by at each reduction."""
    patience: int
    """Evaluations without improvement before a reduction, at least 1."""
    min_delta: float = 0.0
    mode: str = "min"
    """"min": lower metrics are better; "max": higher ones."""
    best: float | None = None
    stale: int = 0
    """Evaluations since the best one or since the last reduction."""
    reductions: int = 0

    def __post_init__(self) -> None:
        assert self.mode in ("min", "max"), self.mode
        assert self.patience >= 1, self.patience

    @property
    def current(self) -> float:
        """The `plateau_factor` of `lr_multiplier`: product of all reductions so far."""
        return self.factor**self.reductions

    def update(self, metric: float) -> float:
        """Takes the metric of one evaluation and returns the factor from now on."""
        sign = 1.0 if self.mode == "min" else -1.0
        if not math.isnan(metric) and (self.best is None or sign * (self.best - metric) > self.min_delta):
            self.best, self.stale = metric, 0
            return self.current
        self.stale += 1
        if self.stale >= self.patience:
            self.stale = 0
            self.reductions += 1
        return self.current

    def state(self) -> dict[str, Any]:
        """Settings and memory as plain numbers and texts."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Plateau:
        """The object that `state` was taken from."""
        return cls(**state)
