"""Schedules: hand values and torch.optim.lr_scheduler as the reference over 500 steps."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from stabviz.ops import schedules
from stabviz.ops.schedules import (
    SCHEDULES,
    constant,
    cosine,
    inverse_sqrt,
    linear_decay,
    linear_warmup,
    plateau_state,
    reduce_on_plateau,
    warmup_stable_decay,
)

STEPS = torch.arange(500)


def reference(make) -> torch.Tensor:
    """The learning rates that a torch scheduler gives 500 updates, for a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def close(mine: torch.Tensor, expected: torch.Tensor) -> None:
    # torch's schedulers multiply step by step in float64: 500 roundings.
    torch.testing.assert_close(mine.double(), expected, rtol=1e-11, atol=1e-12)


def warmup(optimizer, warmup_steps):
    # LinearLR reaches its end factor at total_iters; our first update has 1/warmup, number `warmup` has 1.
    return lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)


def test_hand_values():
    assert constant(torch.arange(3)).tolist() == [1, 1, 1]
    assert [float(linear_warmup(step, 4)) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert float(linear_warmup(0, 0)) == 1
    assert float(cosine(0, 100)) == 1
    assert float(cosine(25, 100)) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert float(cosine(100, 100, final_share=0.1)) == pytest.approx(0.1)
    assert float(cosine(1000, 100, final_share=0.1)) == pytest.approx(0.1)
    assert float(cosine(4, 9, 4)) == 1
    assert float(inverse_sqrt(15, 4)) == 0.5
    assert float(inverse_sqrt(3, 0)) == 0.5
    assert [float(linear_decay(step, 4)) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    # 20 steps: 2 up, stable until 15, then 1 - sqrt(p) with p = 0, 0.2, 0.8, 1
    shares = [float(warmup_stable_decay(step, 20, 2, 0.25)) for step in (0, 1, 14, 15, 16, 19, 20, 99)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1 - math.sqrt(0.2), 1 - math.sqrt(0.8), 0, 0], abs=1e-7)


def test_linear_warmup_equals_linear_lr():
    close(linear_warmup(STEPS.double(), 37), reference(lambda o: warmup(o, 37)))


@pytest.mark.parametrize("final_share", [0.0, 0.1])
def test_cosine_equals_cosine_annealing_lr(final_share):
    expected = reference(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=499, eta_min=final_share))
    close(cosine(STEPS.double(), 499, final_share=final_share), expected)


def test_cosine_after_warmup_equals_sequential_lr():
    expected = reference(
        lambda o: lr_scheduler.SequentialLR(
            o, [warmup(o, 37), lr_scheduler.CosineAnnealingLR(o, T_max=463)], milestones=[37]
        )
    )
    close(cosine(STEPS.double(), 500, 37), expected)


def test_linear_decay_after_warmup_equals_sequential_lr():
    def make(o):
        fall = lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=449)
        return lr_scheduler.SequentialLR(o, [warmup(o, 51), fall], milestones=[51])

    close(linear_decay(STEPS.double(), 500, 51), reference(make))


def test_inverse_sqrt_equals_the_formula_of_the_paper_scaled_to_peak_1():
    peak = 29**-0.5

    def rate(step):
        return min((step + 1) ** -0.5, (step + 1) * 29**-1.5) / peak

    close(inverse_sqrt(STEPS.double(), 29), reference(lambda o: lr_scheduler.LambdaLR(o, rate)))


def test_warmup_stable_decay_before_its_fall_does_not_know_the_end():
    short, long = (warmup_stable_decay(STEPS, total, 29) for total in (300, 437))
    assert torch.equal(short[:241], long[:241])  # 300 steps fall over the last 60, from step 240 on
    assert short[241] < long[241] == 1


def test_warmup_stable_decay_equals_sequential_lr():
    def make(o):
        fall = lr_scheduler.LambdaLR(o, lambda step: 1 - math.sqrt(min(step / 100, 1)))
        stable = lr_scheduler.ConstantLR(o, factor=1.0, total_iters=363)
        return lr_scheduler.SequentialLR(o, [warmup(o, 37), stable, fall], milestones=[37, 400])

    close(warmup_stable_decay(STEPS.double(), 500, 37), reference(make))


def test_warmup_stable_decay_longer_warm_up_leaves_a_shorter_fall():
    shares = [float(warmup_stable_decay(step, 10, 9, 0.5)) for step in (4, 8, 9, 10)]
    assert shares == pytest.approx([5 / 9, 1, 1, 0])
    assert float(warmup_stable_decay(9, 10, 0, 0.0)) == 1


@pytest.mark.parametrize(
    ("factor", "patience", "threshold"), [(0.1, 10, 1e-4), (0.5, 0, 0.0), (0.9, 3, 0.05)]
)
def test_reduce_on_plateau_equals_torch(factor, patience, threshold):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    twin = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=threshold, eps=0.0
    )
    generator = torch.Generator().manual_seed(0)
    state, reductions, multiplier = plateau_state(), 0, torch.ones(())
    for step in range(500):
        # Falls in stairs, with noise, and is NaN now and then; float32, as the state is.
        loss = 5.0 / (1 + step // 40) + 0.1 * float(torch.rand((), generator=generator))
        loss = math.nan if step % 97 == 50 else float(torch.tensor(loss))
        before = multiplier
        state, multiplier = reduce_on_plateau(
            state, loss, factor=factor, patience=patience, threshold=threshold
        )
        twin.step(loss)
        reductions += int(multiplier < before)
        # The multiplier is float32: one rounding for each reduction; below 1e-37 it becomes denormal, then 0.
        assert float(multiplier) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-4, abs=1e-37)
    assert reductions >= 3


def test_reduce_on_plateau_waits_for_more_than_patience():
    state, multipliers = plateau_state(), []
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        state, multiplier = reduce_on_plateau(state, loss, factor=0.5, patience=2)
        multipliers.append(float(multiplier))
    assert multipliers == [1, 1, 1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_one_signature_and_stays_within_0_and_1(name):
    share_S = SCHEDULES[name](STEPS, total_steps=300, warmup_steps=13)
    assert share_S.shape == STEPS.shape
    assert share_S.dtype == torch.get_default_dtype()
    assert (share_S >= 0).all()
    assert share_S.max() == 1
    assert SCHEDULES[name](7, total_steps=300).shape == ()


@pytest.mark.parametrize("name", SCHEDULES)
def test_lengths_may_be_batched_over_runs(name):
    total_R, warmup_R = torch.tensor([11, 100, 500]), torch.tensor([0, 7, 100])
    step_R = torch.tensor([0, 50, 499])
    together_R = torch.vmap(lambda s, t, w: SCHEDULES[name](s, total_steps=t, warmup_steps=w))(
        step_R, total_R, warmup_R
    )
    for run in range(3):
        alone = SCHEDULES[name](
            int(step_R[run]), total_steps=int(total_R[run]), warmup_steps=int(warmup_R[run])
        )
        torch.testing.assert_close(together_R[run], alone, rtol=1e-6, atol=1e-7)  # float32


def test_plateau_under_vmap_equals_the_loop():
    loss_RS = torch.tensor([[3.0, 2, 1, 0.5], [1, 1, 1, 1], [1, math.nan, math.nan, 0.1]])
    state = torch.vmap(lambda _: plateau_state())(loss_RS)
    for loss_R in loss_RS.unbind(1):
        state, multiplier_R = torch.vmap(lambda s, v: reduce_on_plateau(s, v, factor=0.5, patience=1))(
            state, loss_R
        )
    assert multiplier_R.tolist() == [1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant(-1), r"constant: step must be at least 0; got -1"),
        (lambda: linear_warmup(3, -2), r"linear_warmup: warmup_steps must be at least 0; got -2"),
        (lambda: cosine(3, 5, 6), r"cosine: total_steps must be at least warmup_steps; got 5"),
        (lambda: linear_decay(3, 5, 6), r"linear_decay: total_steps must be at least warmup_steps; got 5"),
        (lambda: warmup_stable_decay(3, 5, 6), r"total_steps must be at least warmup_steps; got 5"),
        (lambda: warmup_stable_decay(3, 5, 1, 1.5), r"decay_share must be in \[0, 1\]; got 1.5"),
        (lambda: inverse_sqrt(3, -1), r"inverse_sqrt: warmup_steps must be at least 0; got -1"),
        (lambda: reduce_on_plateau(plateau_state(), 1.0, factor=1.0), r"factor must be in \(0, 1\); got 1.0"),
        (
            lambda: reduce_on_plateau(plateau_state(), 1.0, patience=-1),
            r"patience must be at least 0; got -1",
        ),
        (
            lambda: reduce_on_plateau(plateau_state(), 1.0, threshold=1.0),
            r"threshold must be in \[0, 1\); got 1.0",
        ),
    ],
)
def test_schedules_refuse_impossible_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_schedule_that_starts_one_step_late_is_caught(monkeypatch):
    # The law broken on purpose: off by one in the step count.
    right = schedules._step
    monkeypatch.setattr(schedules, "_step", lambda function, step: right(function, step) + 1)
    for broken in (test_linear_warmup_equals_linear_lr, test_cosine_after_warmup_equals_sequential_lr):
        with pytest.raises(AssertionError):
            broken()
