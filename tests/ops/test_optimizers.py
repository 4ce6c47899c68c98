"""Optimizers: hand values, torch.optim as the reference over 500 steps, vmap, the lessons' exact values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabviz.ops import adam_direction, adam_direction_from, optimizers
from stabviz.ops.optimizers import OPTIMIZERS, adam_init, adam_step, adamw_step, amsgrad_step

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
SHAPES = [(), (1,), (7,), (3, 5), (2, 11, 13)]

REFERENCES = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.01), {"lr": 0.01}),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8), {"lr": 0.01, "beta1": 0.8}),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True),
        {"lr": 0.01, "beta1": 0.8},
    ),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.003, alpha=0.95), {"lr": 0.003, "beta2": 0.95}),
    "adam": (
        lambda p: torch.optim.Adam(p, lr=0.003, betas=(0.8, 0.99)),
        {"lr": 0.003, "beta1": 0.8, "beta2": 0.99},
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-15, weight_decay=0.3),
        {"lr": 0.003, "eps": 1e-15, "weight_decay": 0.3},
    ),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=0.003, amsgrad=True), {"lr": 0.003}),
}


def gradient(step: int, shape, generator, dtype) -> torch.Tensor:
    """Noise of wild scale; zero at every seventh step and, for one element in five, always."""
    if step % 7 == 3:
        return torch.zeros(shape, dtype=dtype)
    grad = torch.randn(shape, generator=generator, dtype=dtype) * 10 ** (3 * math.sin(step))
    return grad * (torch.arange(grad.numel()).reshape(shape) % 5 != 4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_step_equals_torch_optim_over_500_steps(name, shape):
    make, hyperparameters = REFERENCES[name]
    generator = torch.Generator().manual_seed(len(shape))
    param = torch.randn(shape, generator=generator, dtype=torch.float64)
    twin = torch.nn.Parameter(param.clone())
    reference, state = make([twin]), OPTIMIZERS[name].init(param)
    for step in range(500):
        grad = gradient(step, shape, generator, torch.float64)
        twin.grad = grad.clone()
        reference.step()
        param, state, _ = OPTIMIZERS[name].step(param, grad, state, **hyperparameters)
        if step % 50 in (0, 1, 49):
            # float64, 500 steps of another order of operations: about 500 ulp of the largest parameter.
            torch.testing.assert_close(param, twin.detach(), rtol=1e-11, atol=1e-12, msg=f"step {step}")
    assert state["step"] == 500


@pytest.mark.parametrize("name", REFERENCES)
def test_step_equals_torch_optim_in_float32(name):
    make, hyperparameters = REFERENCES[name]
    generator = torch.Generator().manual_seed(1)
    param = torch.randn(23, generator=generator)
    twin = torch.nn.Parameter(param.clone())
    reference, state = make([twin]), OPTIMIZERS[name].init(param)
    for step in range(500):
        grad = gradient(step, (23,), generator, torch.float32)
        twin.grad = grad.clone()
        reference.step()
        param, state, _ = OPTIMIZERS[name].step(param, grad, state, **hyperparameters)
    # Rounding differs by about 1 ulp (6e-8) of each update and adds up as a random walk over 500 updates.
    torch.testing.assert_close(param, twin.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFERENCES)
def test_bfloat16_gradient_on_a_float32_parameter_counts_as_its_float32_value(name):
    make, hyperparameters = REFERENCES[name]
    generator = torch.Generator().manual_seed(2)
    param = torch.randn(3, 7, generator=generator)
    twin = torch.nn.Parameter(param.clone())
    reference, state = make([twin]), OPTIMIZERS[name].init(param)
    for step in range(50):
        grad = gradient(step, (3, 7), generator, torch.float32).bfloat16()
        twin.grad = grad.float()
        reference.step()
        param, state, _ = OPTIMIZERS[name].step(param, grad, state, **hyperparameters)
    assert param.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in state.values())
    torch.testing.assert_close(param, twin.detach(), rtol=3e-5, atol=3e-6)  # 50 float32 updates


def test_adam_without_bias_correction_takes_the_steps_that_the_formula_says():
    # With a constant gradient the corrected step is lr at every t, so the uncorrected one IS the ratio.
    for beta2, expected in ((0.999, {1: 3.16, 10: 6.5, 100: 3.2}), (0.95, {1: 0.45})):
        param, state = torch.zeros(1, dtype=torch.float64), adam_init(torch.zeros(1, dtype=torch.float64))
        for t in range(1, 101):
            grad = torch.full((1,), 17.0, dtype=torch.float64)
            new, state, measured = adam_step(
                param, grad, state, lr=0.1, beta2=beta2, eps=0.0, bias_correction=False
            )
            ratio = float(param - new) / 0.1
            assert ratio == pytest.approx((1 - 0.9**t) / math.sqrt(1 - beta2**t), rel=1e-9)
            assert float(measured.update_rms) == pytest.approx(ratio, rel=1e-9)
            if t in expected:
                assert ratio == pytest.approx(expected[t], abs=0.05)
            param = new


def test_bias_correction_as_a_tensor_chooses_per_run():
    grad, param = torch.tensor([3.0]), torch.tensor([1.0])
    for flag in (True, False):
        by_bool = adam_step(param, grad, adam_init(param), lr=0.1, bias_correction=flag)
        by_tensor = adam_step(param, grad, adam_init(param), lr=0.1, bias_correction=torch.tensor(flag))
        torch.testing.assert_close(
            by_bool[0], by_tensor[0], rtol=1e-6, atol=0
        )  # float64 scalar or none: 1 ulp
        torch.testing.assert_close(by_bool[2], by_tensor[2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_amsgrad_finds_the_optimum_that_adam_walks_away_from(bias_correction):
    # Reddi et al. 2018: the mean gradient is (3 - 1 - 1) / 3 > 0, so -1 is the optimum of [-1, 1].
    ends = {}
    for name in ("adam", "amsgrad"):
        param = torch.zeros((), dtype=torch.float64)
        state = OPTIMIZERS[name].init(param)
        for t in range(1, 6001):
            grad = torch.tensor(3.0 if t % 3 == 1 else -1.0, dtype=torch.float64)
            hyper = {"lr": 0.5 / math.sqrt(t), "beta1": 0.0, "beta2": 1 / (1 + 3**2)}
            param, state, _ = OPTIMIZERS[name].step(
                param, grad, state, **hyper, bias_correction=bias_correction
            )
            param = param.clamp(-1, 1)
        ends[name] = float(param)
    # The last steps are up to 0.5 / sqrt(6000) = 0.006 long, and three of them make one cycle.
    assert ends["adam"] == pytest.approx(1, abs=0.02)
    assert ends["amsgrad"] == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("beta2", [0.999, 0.95])
@pytest.mark.parametrize("jump", [1, 3, 10, 100])
def test_second_moment_ratio_after_a_jump_equals_the_formula(jump, beta2):
    param = torch.zeros(5, dtype=torch.float64)
    settled = {
        "step": torch.tensor(1e6),
        "first_moment": torch.zeros_like(param),
        "second_moment": torch.ones_like(param),
    }
    _, _, measured = adam_step(param, torch.full_like(param, jump), settled, lr=0.1, beta2=beta2)
    formula = jump / math.sqrt(1 + (1 - beta2) * (jump**2 - 1))
    assert float(measured.second_moment_ratio) == pytest.approx(formula, rel=1e-9)


def test_second_moment_ratio_after_a_tenfold_jump_is_9_54_and_4_10():
    param = torch.zeros(2)
    settled = {"step": torch.tensor(1e6), "first_moment": torch.zeros(2), "second_moment": torch.ones(2)}
    for beta2, expected in ((0.999, 9.54), (0.95, 4.10)):
        measured = adam_step(param, torch.full((2,), 10.0), settled, lr=0.1, beta2=beta2)[2]
        assert float(measured.second_moment_ratio) == pytest.approx(expected, abs=0.005)


def test_default_adam_step_on_fp16_parameters_is_not_finite():
    # 1e-8 is 0 in float16, and so is (1 - beta2) g^2: 0/0 and m/0.
    param = torch.ones(3, dtype=torch.float16)
    grad = torch.tensor([0.0, 1e-4, 1e-3], dtype=torch.float16)
    new, _, _ = adam_step(param, grad, adam_init(param), lr=1e-3)
    assert new.dtype == torch.float16
    assert torch.isnan(new[0])
    assert new[1:].tolist() == [-math.inf, -math.inf]
    fine = adam_step(param.float(), grad, adam_init(param.float()), lr=1e-3)[0]
    assert torch.isfinite(fine).all()


def test_independent_decay_is_not_multiplied_by_lr():
    param, grad = torch.full((3,), 2.0, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for lr in (0.0, 0.1, 7.0):
        new = optimizers.adamw_independent_step(param, grad, adam_init(param), lr=lr, weight_decay=0.25)[0]
        assert new.tolist() == [1.5] * 3
        coupled = adamw_step(param, grad, adam_init(param), lr=lr, weight_decay=0.1)[0]
        torch.testing.assert_close(coupled, param * (1 - 0.1 * lr))
    moving = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    independent = optimizers.adamw_independent_step(
        param, moving, adam_init(param), lr=0.1, weight_decay=0.02
    )[0]
    coupled = adamw_step(param, moving, adam_init(param), lr=0.1, weight_decay=0.2)[0]
    torch.testing.assert_close(independent, coupled)


def stable_adamw_reference(param, grads, lr, beta1, beta2, eps, weight_decay):
    """arXiv:2304.13013 in numpy: the moments' betas are de-biased instead of the moments."""
    param, m, v = param.copy(), np.zeros_like(param), np.zeros_like(param)
    ratios = []
    for t, g in enumerate(grads, start=1):
        b1 = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t)
        b2 = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(v, eps**2)))
        eta = lr / max(1.0, rms)
        param = param - eta * (weight_decay * param + m / (np.sqrt(v) + eps))
        ratios.append(rms)
    return param, ratios


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stable_adamw_equals_the_papers_algorithm_in_numpy(shape):
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [gradient(step, shape, generator, torch.float64) for step in range(300)]
    hyper = {"lr": 0.01, "beta1": 0.85, "beta2": 0.97, "eps": 1e-6, "weight_decay": 0.2}
    expected, ratios = stable_adamw_reference(start.numpy(), [g.numpy() for g in grads], **hyper)
    param, state = start, adam_init(start)
    for grad, ratio in zip(grads, ratios, strict=True):
        param, state, measured = optimizers.stable_adamw_step(param, grad, state, **hyper)
        assert float(measured.second_moment_ratio) == pytest.approx(ratio, rel=1e-9, abs=1e-12)
    assert max(ratios) > 2, "the gradients never jumped: the clipping was not tested"
    np.testing.assert_allclose(param.numpy(), expected, rtol=1e-9, atol=1e-12)  # 300 float64 steps


def batched(name: str, runs: int, size: int, seed: int = 5):
    """Parameters, gradients, states and hyperparameters that all differ by run."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = OPTIMIZERS[name]
    param_RP, grad_RP = (torch.randn(runs, size, generator=generator) for _ in range(2))
    state = torch.vmap(optimizer.init)(param_RP)
    state = {k: torch.rand(v.shape, generator=generator) + 0.1 for k, v in state.items()}
    state["step"] = torch.arange(runs).float() * 11
    hyper = {"lr": torch.logspace(-4, -1, runs)}
    for key, default in optimizer.hyperparameters.items():
        if isinstance(default, bool):
            hyper[key] = torch.arange(runs) % 2 == 0
        else:
            hyper[key] = default * torch.linspace(0.5, 1, runs)
    return param_RP, grad_RP, state, hyper


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vmap_over_runs_equals_the_loop(name, device):
    step = OPTIMIZERS[name].step
    arguments = torch.utils._pytree.tree_map(lambda x: x.to(device), batched(name, runs=5, size=103))
    together = torch.vmap(lambda p, g, s, h: step(p, g, s, **h))(*arguments)
    for run in range(5):
        param, grad, state, hyper = torch.utils._pytree.tree_map(lambda x, run=run: x[run], arguments)
        alone = step(param, grad, state, **hyper)
        mine = torch.utils._pytree.tree_map(lambda x, run=run: x[run], together)
        torch.testing.assert_close(mine, alone, rtol=1e-6, atol=1e-7, equal_nan=True)  # float32: a few ulp


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_untouched_by_its_neighbours_nan(name):
    step = OPTIMIZERS[name].step
    param_RP, grad_RP, state, hyper = batched(name, runs=3, size=11)
    sound = torch.vmap(lambda p, g, s, h: step(p, g, s, **h))(param_RP, grad_RP, state, hyper)
    grad_RP = grad_RP.clone()
    grad_RP[1, 4] = math.nan
    sick = torch.vmap(lambda p, g, s, h: step(p, g, s, **h))(param_RP, grad_RP, state, hyper)
    for run in (0, 2):
        assert torch.equal(sick[0][run], sound[0][run])
    assert torch.isnan(sick[0][1, 4])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tensor_hyperparameter_equals_the_number(name):
    param, grad = (
        torch.linspace(-2, 3, 13, dtype=torch.float64),
        torch.linspace(1, -4, 13, dtype=torch.float64),
    )
    optimizer = OPTIMIZERS[name]
    hyper = {"lr": 0.03, **optimizer.hyperparameters}
    tensors = {
        key: torch.tensor(value, dtype=None if value is True else torch.float64)
        for key, value in hyper.items()
    }
    by_number, by_tensor = (param, optimizer.init(param)), (param, optimizer.init(param))
    for _ in range(20):
        by_number = optimizer.step(by_number[0], grad, by_number[1], **hyper)
        by_tensor = optimizer.step(by_tensor[0], grad, by_tensor[1], **tensors)
    torch.testing.assert_close(by_number[:2], by_tensor[:2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by_number[2], by_tensor[2], rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_flows_through_a_step(name):
    optimizer = OPTIMIZERS[name]
    hyper = {key: value for key, value in optimizer.hyperparameters.items() if key == "weight_decay"}

    def two_steps(param, first, second, lr):
        state = optimizer.init(param)
        param, state, _ = optimizer.step(param, first, state, lr=lr, **hyper, measure=False)
        return optimizer.step(param, second, state, lr=lr, **hyper, measure=False)[0]

    generator = torch.Generator().manual_seed(6)
    inputs = [torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(3)]
    inputs.append(torch.tensor(0.1, dtype=torch.float64))
    assert torch.autograd.gradcheck(two_steps, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_leaves_its_arguments_alone(name):
    optimizer = OPTIMIZERS[name]
    param, grad = torch.ones(7), torch.linspace(-1, 1, 7)
    state = optimizer.init(param)
    before = {key: value.clone() for key, value in state.items()}
    new, new_state, _ = optimizer.step(param, grad, state, lr=0.1)
    assert torch.equal(param, torch.ones(7))
    assert torch.equal(grad, torch.linspace(-1, 1, 7))
    assert all(torch.equal(state[key], before[key]) for key in before)
    assert new_state.keys() == state.keys()
    assert new_state["step"] == 1
    assert not torch.equal(new, param)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_measure_false_changes_nothing_but_the_measures(name):
    optimizer = OPTIMIZERS[name]
    param, grad = torch.ones(7), torch.linspace(-1, 1, 7)
    measured = optimizer.step(param, grad, optimizer.init(param), lr=0.1)
    silent = optimizer.step(param, grad, optimizer.init(param), lr=0.1, measure=False)
    assert torch.equal(measured[0], silent[0])
    assert torch.isfinite(measured[2].update_rms)
    assert all(torch.isnan(value) for value in silent[2])


def test_registry_knows_the_hyperparameters_and_their_defaults():
    adam = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": True}
    assert {name: optimizer.hyperparameters for name, optimizer in OPTIMIZERS.items()} == {
        "sgd": {},
        "momentum": {"beta1": 0.9},
        "nesterov": {"beta1": 0.9},
        "rmsprop": {"beta2": 0.99, "eps": 1e-8},
        "adam": adam,
        "adamw": adam | {"weight_decay": 0.01},
        "adamw_independent": adam | {"weight_decay": 1e-4},
        "amsgrad": adam,
        "stable_adamw": adam | {"weight_decay": 0.01},
    }


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adam_direction_is_the_step_over_lr_also_from_the_moments_it_left(bias_correction):
    hyper = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "bias_correction": bias_correction}
    generator = torch.Generator().manual_seed(8)
    param = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    state = adam_init(param)
    for _ in range(7):
        grad = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        direction, after = adam_direction(grad, state, **hyper)
        new, state, _ = adam_step(param, grad, state, lr=0.1, **hyper)
        torch.testing.assert_close(direction, (param - new) / 0.1, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(after, state, rtol=0, atol=0)
        again = adam_direction_from(after["first_moment"], after["second_moment"], after["step"], **hyper)
        assert torch.equal(again, direction)


def test_a_hyperparameter_of_the_parameters_shape_counts_by_element():
    param, decay = torch.ones(7), torch.tensor([0.0, 1, 0, 1, 0, 1, 0])
    new, _, _ = adamw_step(param, torch.zeros(7), adam_init(param), lr=0.5, weight_decay=decay)
    assert new.tolist() == [1, 0.5, 1, 0.5, 1, 0.5, 1]


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"lr": -1.0}, r"adamw_step: lr must be at least 0; got -1.0"),
        ({"lr": math.nan}, r"adamw_step: lr must be at least 0; got nan"),
        ({"lr": 0.1, "beta1": 1.0}, r"adamw_step: beta1 must be in \[0, 1\); got 1.0"),
        ({"lr": 0.1, "beta2": -0.1}, r"adamw_step: beta2 must be in \[0, 1\); got -0.1"),
        ({"lr": 0.1, "eps": -1e-8}, r"adamw_step: eps must be at least 0; got -1e-08"),
        ({"lr": 0.1, "weight_decay": -0.1}, r"adamw_step: weight_decay must be at least 0; got -0.1"),
    ],
)
def test_step_refuses_impossible_hyperparameters(hyper, message):
    param = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        adamw_step(param, param, adam_init(param), **hyper)


def test_step_refuses_another_shape_and_another_optimizers_state():
    param = torch.ones(3)
    with pytest.raises(ValueError, match=r"adam_step: grad must be of param's shape \(3,\); got \(2,\)"):
        adam_step(param, torch.ones(2), adam_init(param), lr=0.1)
    with pytest.raises(
        ValueError, match=r"amsgrad_step: state must be a dict of .*Make it with amsgrad_init"
    ):
        amsgrad_step(param, param, adam_init(param), lr=0.1)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    size=st.integers(1, 19),
    name=st.sampled_from(["adam", "adamw", "adamw_independent", "amsgrad"]),
)
def test_first_corrected_step_is_lr_whatever_the_gradients_scale(scale, size, name):
    param = torch.zeros(size, dtype=torch.float64)
    grad = torch.linspace(1, 2, size, dtype=torch.float64) * scale
    new, _, measured = OPTIMIZERS[name].step(param, grad, OPTIMIZERS[name].init(param), lr=0.1, eps=0.0)
    torch.testing.assert_close(new, torch.full_like(new, -0.1), rtol=1e-9, atol=0)
    assert float(measured.update_rms) == pytest.approx(1, rel=1e-9)
    assert float(measured.second_moment_ratio) == pytest.approx(1, rel=1e-9)


def test_a_broken_bias_correction_is_caught(monkeypatch):
    # The law broken on purpose: a correction that is off by one step must not pass the reference test.
    right = optimizers.bias_corrected
    monkeypatch.setattr(optimizers, "bias_corrected", lambda m, beta, t, flag: right(m, beta, t + 1, flag))
    with pytest.raises(AssertionError):
        test_step_equals_torch_optim_over_500_steps("adam", (7,))


def test_a_lerp_that_loses_infinity_would_be_caught():
    # An infinite gradient leaves v infinite (the update is 0 there), and does not turn it into NaN later.
    param = torch.ones(2)
    _, state, _ = optimizers.rmsprop_step(
        param, torch.tensor([math.inf, 1.0]), optimizers.rmsprop_init(param), lr=0.1
    )
    _, state, _ = optimizers.rmsprop_step(param, torch.ones(2), state, lr=0.1)
    assert state["second_moment"][0] == math.inf
