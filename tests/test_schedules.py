"""Learning rates against transformers' schedules, the papers' formulas, and torch's ReduceLROnPlateau."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import optimization

from trainer.engine.progress import Progress
from trainer.optim.schedules import Plateau, lr_multiplier
from trainer.recipe.sections import OptimConfig

TOTAL = 60


def ours(optim: OptimConfig, total: int) -> list[float]:
    """The rates of a whole run: at step s, s - 1 of `total` steps are done."""
    return [lr_multiplier(optim, step, (step - 1) / total) for step in range(1, total + 1)]


def theirs(name: str, total: int, **arguments: int) -> list[float]:
    """The rates at which an optimizer of rate 1 under a schedule of transformers makes its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: LRScheduler = getattr(optimization, name)(optimizer, **arguments)
    rates = []
    for _ in range(total):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 7, 59])
@pytest.mark.parametrize(
    ("schedule", "name"),
    [("linear", "get_linear_schedule_with_warmup"), ("cosine", "get_cosine_schedule_with_warmup")],
)
def test_decay_to_the_end_is_that_of_transformers(schedule: str, name: str, warmup: int) -> None:
    """The same rate at each step after warm-up, though we do not know the total; in warm-up ours is one step ahead."""
    rates = ours(OptimConfig(schedule=schedule, warmup_steps=warmup), TOTAL)
    expected = theirs(name, TOTAL, num_warmup_steps=warmup, num_training_steps=TOTAL)
    assert rates[warmup:] == pytest.approx(expected[warmup:], abs=1e-12)
    assert rates[: max(0, warmup - 1)] == pytest.approx(expected[1:warmup], abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [("constant", "get_constant_schedule_with_warmup"), ("inverse_sqrt", "get_inverse_sqrt_schedule")],
)
def test_counted_schedules_are_those_of_transformers_one_step_ahead(schedule: str, name: str) -> None:
    rates = ours(OptimConfig(schedule=schedule, warmup_steps=8), TOTAL)
    assert rates[:-1] == pytest.approx(theirs(name, TOTAL, num_warmup_steps=8)[1:], abs=1e-12)


def test_inverse_sqrt_without_warmup_is_that_of_transformers() -> None:
    rates = ours(OptimConfig(schedule="inverse_sqrt"), TOTAL)
    assert rates == pytest.approx(theirs("get_inverse_sqrt_schedule", TOTAL, num_warmup_steps=0), abs=1e-12)


def test_noam_gives_the_rates_of_the_paper() -> None:
    """Vaswani et al. (2017), eq. 3: d_model^-0.5 * min(step^-0.5, step * warmup^-1.5)."""
    d_model, warmup = 512, 40
    optim = OptimConfig(schedule="noam", warmup_steps=warmup, lr=(d_model * warmup) ** -0.5)
    for step in range(1, 200):
        expected = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert optim.lr * lr_multiplier(optim, step, 0.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("cut_fraction", "ratio"), [(0.1, 32.0), (0.25, 10.0)])
def test_slanted_triangular_gives_the_rates_of_the_paper(cut_fraction: float, ratio: float) -> None:
    """Howard & Ruder (2018), eq. 3, with its own names; t counts from 0."""
    big_t = 200
    cut = math.floor(big_t * cut_fraction)
    rates = ours(OptimConfig(schedule="slanted_triangular", cut_fraction=cut_fraction, ratio=ratio), big_t)
    for t, rate in enumerate(rates):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_fraction - 1))
        assert rate == pytest.approx((1 + p * (ratio - 1)) / ratio, abs=1e-12)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt", "noam", "slanted_triangular", "plateau"]),
    warmup=st.integers(0, 50),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
@settings(deadline=None, max_examples=200)
def test_every_step_moves_and_no_rate_exceeds_the_peak(schedule: str, warmup: int, rows: list[int]) -> None:
    """With progress counted in rows, steps of unequal size, and runs that end before warm-up does."""
    optim = OptimConfig(schedule=schedule, warmup_steps=warmup)
    rates = [lr_multiplier(optim, i + 1, sum(rows[:i]) / sum(rows)) for i in range(len(rows))]
    assert all(0.0 < rate <= 1.0 + 1e-12 for rate in rates)
    rising = 0 if schedule == "slanted_triangular" else min(warmup, len(rows))
    assert rates[:rising] == sorted(rates[:rising])
    if schedule != "slanted_triangular":
        assert all(b <= a + 1e-12 for a, b in zip(rates[rising:], rates[rising + 1 :], strict=False))


def test_linear_ends_at_zero_and_stays_there() -> None:
    assert lr_multiplier(OptimConfig(schedule="linear", warmup_steps=5), 100, 1.0) == 0.0
    assert lr_multiplier(OptimConfig(schedule="cosine", warmup_steps=5), 100, 1.0) == pytest.approx(0.0, abs=1e-15)


def test_plateau_factor_scales_only_the_plateau_schedule() -> None:
    plateau = OptimConfig(schedule="plateau", warmup_steps=4)
    assert [lr_multiplier(plateau, s, 0.0, plateau_factor=0.5) for s in (2, 4, 5)] == [0.25, 0.5, 0.5]
    assert lr_multiplier(OptimConfig(schedule="constant"), 5, 0.0, plateau_factor=0.5) == 1.0


@given(
    metrics=st.lists(st.sampled_from([1.0, 1.1, 1.25, 1.3, 2.0, 5.0, math.nan]), max_size=30),
    patience=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.125]),
    mode=st.sampled_from(["min", "max"]),
)
@settings(deadline=None)
def test_plateau_decides_as_torch_does_and_survives_a_restart(
    metrics: list[float], patience: int, min_delta: float, mode: str
) -> None:
    """Torch reduces after more than `patience` bad epochs, we after `patience`: hence its patience - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience - 1, threshold=min_delta, threshold_mode="abs", eps=0.0
    )
    plateau = Plateau(factor=0.5, patience=patience, min_delta=min_delta, mode=mode)
    for metric in metrics:
        torchs.step(metric)
        plateau = Plateau.from_state(json.loads(json.dumps(plateau.state())))
        assert plateau.update(metric) == plateau.current == optimizer.param_groups[0]["lr"]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_many_small_gains_end_the_waiting_and_a_resume_changes_nothing() -> None:
    """Each gain is below min_delta; together they are more. The reference is that of the last real gain."""
    values = [1.0, 0.94, 0.88, 0.82, 0.81, 0.80, math.nan, 0.9, 0.5]
    for resumed in (False, True):
        progress, waits, bests = Progress.start(1), [], []
        for step, value in enumerate(values):
            progress.step = step
            bests.append(progress.record_evaluation(value, True, 0.1))
            waits.append(progress.bad_evals)
            if resumed:
                progress = Progress.from_json(json.loads(json.dumps(progress.to_json(progress.marks))))
        assert waits == [0, 1, 0, 1, 2, 3, 4, 5, 0], "0.88 is better than 1.0 by more than 0.1, and 0.5 than that"
        assert bests == [True] * 6 + [False, False, True]
    state = progress.to_json(progress.marks)
    del state["reference"]
    assert Progress.from_json(state).reference == 0.5, "of a checkpoint of before"
    rising = Progress.start(1)
    assert [rising.record_evaluation(value, False, 0.0) for value in (0.5, 0.5, 0.4, 0.6)] == [True, True, False, True]
    assert rising.bad_evals == 0 and rising.best is not None and rising.best.value == 0.6


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_warm_up_by_share_is_the_one_by_steps(schedule: str) -> None:
    """Of 60 steps a share of 0.1 are 6 steps; nothing but the way of counting differs."""
    by_share = OptimConfig(schedule=schedule, warmup_ratio=0.1)
    rates = [lr_multiplier(by_share, s, (s - 1) / TOTAL, progress_after=s / TOTAL) for s in range(1, TOTAL + 1)]
    assert rates == pytest.approx(ours(OptimConfig(schedule=schedule, warmup_steps=6), TOTAL), abs=1e-9)
    assert max(rates) == rates[5] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt"])
def test_a_warm_up_by_share_of_the_other_schedules(schedule: str) -> None:
    by_share = OptimConfig(schedule=schedule, warmup_ratio=0.1)
    rates = [lr_multiplier(by_share, s, (s - 1) / TOTAL, progress_after=s / TOTAL) for s in range(1, TOTAL + 1)]
    assert rates == pytest.approx(ours(OptimConfig(schedule=schedule, warmup_steps=6), TOTAL), abs=1e-9)


def test_a_warm_up_by_share_does_not_change_a_schedule_with_its_own() -> None:
    """slanted_triangular ignores `warmup_ratio`, as it does `warmup_steps`."""
    rates = [ours(OptimConfig(schedule="slanted_triangular", warmup_ratio=share), TOTAL) for share in (0.0, 0.3)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > TOTAL / 2
