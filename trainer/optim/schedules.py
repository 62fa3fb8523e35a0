"""Learning-rate schedules: one pure function of the step and of the finished share of the training.

There is no scheduler object to prepare, save or step: a resumed run gets the same rate for the same step, on any number
of ranks. Only plateau has a state, `Plateau`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainer.recipe.sections import OptimConfig

INVERSE_SQRT_TIMESCALE = 10_000  # steps; used without warm-up, as in transformers' get_inverse_sqrt_schedule


def lr_multiplier(
    optim: OptimConfig,
    step: int,
    progress: float,
    *,
    depth: int = 0,
    plateau_factor: float = 1.0,
    progress_after: float | None = None,
) -> float:
    """Return the factor on the base rate of a group for the next step: schedule, layer-wise decay and unfreezing.

    The rate of a layer is that of the schedule times `layer_decay` ** depth (discriminative fine-tuning). It is 0 until
    gradual unfreezing reaches the layer: depth d is trained once the share `unfreeze` * d of the training is done
    (both Howard & Ruder 2018; with unfreeze = 1 / epochs one more layer moves in each epoch).

    Rates that count steps (warm-up, inverse_sqrt, noam) use `step`, so the rate of the first step is not 0. Rates
    that run to the end use the share done *before* the step, so the rate of the last step is not 0 either:

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
        step: number of the next step, from 1.
        progress: share of the planned training done before this step, in [0, 1]: rows consumed / (epochs * rows), or
            (step - 1) / max_steps; the larger one if both end the run.
        depth: of the group (`build_optimizer`): 0 the head, 1 the top layer of the trunk, and so on down.
        plateau_factor: product of the reductions so far.
        progress_after: the share done with this step; needed with `warmup_ratio` only.
    """
    assert step >= 1, step
    assert 0.0 <= progress <= 1.0, progress
    if progress + 1e-9 < optim.unfreeze * depth:  # three fifths are a little more than 3 times a fifth
        return 0.0
    return optim.layer_decay**depth * _scheduled(optim, step, progress, plateau_factor, progress_after or progress)


def _scheduled(optim: OptimConfig, step: int, progress: float, plateau_factor: float, after: float) -> float:
    if optim.schedule == "slanted_triangular":
        return _slanted_triangular(progress, optim.cut_fraction, optim.ratio)
    # the warm-up is counted in steps, or in shares of the training
    done, warmup = (after, optim.warmup_ratio) if optim.warmup_ratio else (step, optim.warmup_steps)
    if done <= warmup:
        return done / warmup * (plateau_factor if optim.schedule == "plateau" else 1.0)
    if optim.schedule in ("inverse_sqrt", "noam"):
        return math.sqrt(warmup / done) if warmup else _inverse_sqrt(step)
    if optim.schedule in ("linear", "cosine"):
        left = _share_after_warmup(optim, step - 1, progress)
        return 1.0 - left if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * left))
    return plateau_factor if optim.schedule == "plateau" else 1.0


def _share_after_warmup(optim: OptimConfig, done: int, progress: float) -> float:
    """(done - warmup) / (total - warmup) with total = done / progress, for done >= warmup; in [0, 1]."""
    warmup, ratio = optim.warmup_steps, optim.warmup_ratio
    if ratio:
        return max(0.0, progress - ratio) / (1.0 - ratio)
    if done <= warmup:
        return 0.0
    return min(1.0, progress * (done - warmup) / (done - warmup * progress))


def _inverse_sqrt(step: int) -> float:
    return math.sqrt(INVERSE_SQRT_TIMESCALE / (INVERSE_SQRT_TIMESCALE + step - 1))


def _slanted_triangular(progress: float, cut_fraction: float, ratio: float) -> float:
    if progress < cut_fraction:
        height = progress / cut_fraction
    else:
        height = 1.0 - (progress - cut_fraction) / (1.0 - cut_fraction)
    return (1.0 + height * (ratio - 1.0)) / ratio


@dataclass
class Plateau:
    """Reduce the rate after `patience` evaluations in a row without an improvement.

    Every rank has one and updates it with the same reduced metric, so all ranks decide alike. An improvement is a
    metric better than the best so far by more than `min_delta`; NaN is no improvement. `state()` is plain JSON and
    restores by `from_state`.
    """

    factor: float
    """Factor on the rate at each reduction."""
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
        """Take the metric of an evaluation, and return the factor for the next steps."""
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
        """Return settings and state as JSON values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Plateau:
        """Restore an object from its `state`."""
        return cls(**state)
