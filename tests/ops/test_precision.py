"""Precision: the edges of float16 and bfloat16, unbiased stochastic rounding, torch's loss-scale rule."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabviz.ops import precision
from stabviz.ops.precision import (
    loss_scale_state,
    round_to_bf16,
    round_to_fp16,
    stochastic_round_to_bf16,
    update_loss_scale,
)


def test_fp16_edges():
    x = torch.tensor([65504.0, 65519.0, 65519.996, 65520.0, -65520.0, 1e-8, 2.0**-24, 2.0**-25, math.nan])
    rounded = round_to_fp16(x)
    assert rounded.dtype == torch.float32
    assert rounded[:8].tolist() == [65504, 65504, 65504, math.inf, -math.inf, 0, 2.0**-24, 0]
    assert torch.isnan(rounded[8])
    assert round_to_fp16(torch.tensor(12.0).exp()) == math.inf
    assert round_to_fp16(torch.tensor(11.0).exp()) < math.inf


def test_bf16_has_the_range_of_float32_and_8_bits():
    x = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-7, 3e38, 1e-38, 65520.0])
    assert round_to_bf16(x)[:3].tolist() == [1, 1 + 2.0**-6, 1 + 2.0**-7]  # ties go to the even one
    assert torch.isfinite(round_to_bf16(x)).all()
    assert (round_to_bf16(x) > 0).all()


def test_a_thousand_small_additions_are_lost_in_bf16_and_kept_on_average_by_stochastic_rounding():
    total = torch.tensor(1.0)
    for _ in range(1000):
        total = round_to_bf16(total + 1e-3)
    assert total == 1
    seeds = 256
    generator = torch.Generator().manual_seed(0)
    total_R = torch.ones(seeds)
    for _ in range(1000):
        total_R = stochastic_round_to_bf16(total_R + 1e-3, generator=generator)
    mean, spread = total_R.mean().item(), total_R.std().item()
    # Unbiased, so the mean is 2; its standard error over 256 seeds is .088 / 16 = .0055: four of them.
    assert mean == pytest.approx(2.0, abs=0.022)
    assert spread == pytest.approx(0.088, abs=0.02)


finite = st.floats(-(2.0**100), 2.0**100, allow_nan=False, width=32)


@settings(max_examples=150, deadline=None)
@given(value=finite, noise=st.floats(0, 0.9375, width=32))
def test_stochastic_rounding_gives_one_of_the_two_neighbours(value, noise):
    x = torch.tensor([value])
    rounded = stochastic_round_to_bf16(x, noise=torch.tensor([noise]))
    assert torch.equal(rounded, round_to_bf16(rounded)), "not a bfloat16 value"
    below = stochastic_round_to_bf16(x, noise=torch.zeros(1))
    assert below.abs() <= x.abs()
    # Neighbours differ by 2^-7 of the power of two below, or by the denormal step.
    assert abs(float(rounded) - float(x)) < max(abs(value) * 2**-7, 2.0**-133)
    if torch.equal(x, round_to_bf16(x)):
        assert torch.equal(rounded, x)


def test_stochastic_rounding_is_right_in_the_mean_for_both_signs():
    noise = (torch.arange(4096) + 0.5) / 4096
    for value in (1.0037, -1.0037, 3e-5, -271.3):
        x = torch.full((4096,), value)
        mean = statistics.fmean(stochastic_round_to_bf16(x, noise=noise).tolist())
        assert mean == pytest.approx(float(x[0]), rel=2**-7 / 4096)


def test_stochastic_rounding_keeps_what_is_not_finite():
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7F800000], dtype=torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([-math.inf])])
    for noise in (torch.zeros(4), torch.full((4,), 0.9999)):
        rounded = stochastic_round_to_bf16(x, noise=noise)
        assert torch.isnan(rounded[:2]).all()
        assert rounded[2:].tolist() == [math.inf, -math.inf]


def test_stochastic_rounding_under_vmap_equals_the_loop_and_a_seed_repeats():
    x_RP = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    noise_RP = torch.rand(3, 11, generator=torch.Generator().manual_seed(2))
    together = torch.vmap(lambda x, n: stochastic_round_to_bf16(x, noise=n))(x_RP, noise_RP)
    assert all(
        torch.equal(together[r], stochastic_round_to_bf16(x_RP[r], noise=noise_RP[r])) for r in range(3)
    )
    first, second = (
        stochastic_round_to_bf16(x_RP, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_rounding_passes_the_gradient_rounded():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (round_to_fp16(x) * torch.tensor([3.0, 1e-9])).sum().backward()
    assert x.grad.tolist() == [3, 0]


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_loss_scale_follows_torch_grad_scaler_over_500_steps(interval):
    start = 2.0**120  # near the top of float32: doubling must stop before inf
    twin = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=interval)
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.0)
    state, largest = loss_scale_state(start), 0.0
    generator = torch.Generator().manual_seed(interval)
    for step in range(500):
        finite = bool(torch.rand((), generator=generator) > (0.1 if step < 250 else 0.6))
        twin.scale(torch.zeros(()))  # creates the scale tensor on first use
        param.grad = torch.tensor([1.0 if finite else math.inf])
        twin.step(optimizer)
        twin.update()
        state = update_loss_scale(state, finite, interval=interval)
        assert float(state["scale"]) == twin.get_scale()
        assert float(state["good_steps"]) == twin._get_growth_tracker()
        largest = max(largest, float(state["scale"]))
    assert start < largest < math.inf


def test_loss_scale_hand_values_and_batched_runs():
    state = torch.vmap(lambda _: loss_scale_state(8.0))(torch.zeros(2))
    for finite_R in ([True, True], [True, False], [True, True]):
        state = torch.vmap(lambda s, f: update_loss_scale(s, f, interval=2))(state, torch.tensor(finite_R))
    assert state["scale"].tolist() == [16, 4]
    assert state["good_steps"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: round_to_fp16(torch.arange(3)), r"round_to_fp16: x must be floating point; got torch.int64"),
        (lambda: round_to_bf16(torch.arange(3)), r"round_to_bf16: x must be floating point; got torch.int64"),
        (
            lambda: stochastic_round_to_bf16(torch.zeros(3, dtype=torch.float64)),
            r"x must be float32; got torch.float64",
        ),
        (
            lambda: stochastic_round_to_bf16(torch.zeros(3), noise=torch.zeros(2)),
            r"noise must be of x's shape \(3,\); got \(2,\)",
        ),
        (lambda: loss_scale_state(0.0), r"loss_scale_state: scale must be positive and finite; got 0.0"),
        (lambda: update_loss_scale(loss_scale_state(), True, growth=1.0), r"growth must be above 1; got 1.0"),
        (
            lambda: update_loss_scale(loss_scale_state(), True, backoff=1.0),
            r"backoff must be in \(0, 1\); got 1.0",
        ),
        (
            lambda: update_loss_scale(loss_scale_state(), True, interval=0),
            r"interval must be at least 1; got 0",
        ),
    ],
)
def test_precision_refuses_impossible_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_without_noise_is_caught(monkeypatch):
    # The law broken on purpose: truncation instead of stochastic rounding loses every small addition.
    right = precision.stochastic_round_to_bf16
    broken = lambda x, *, generator: right(x, noise=torch.zeros_like(x))  # noqa: E731
    monkeypatch.setitem(globals(), "stochastic_round_to_bf16", broken)
    with pytest.raises(AssertionError):
        test_a_thousand_small_additions_are_lost_in_bf16_and_kept_on_average_by_stochastic_rounding()
