import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from stabviz.ops import (
    embedding,
    feed_forward,
    gelu,
    gelu_grad,
    layer_norm,
    layer_norm_grad,
    linear,
    relu,
    rms_norm,
)

# float64 against float64: both sides round about 1e-16 per operation over sums of tens of terms.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SHAPES = [(2, 3, 5), (7, 11), (1, 1, 1), (13,), (2, 1, 3, 17)]


def randn(*shape, seed=0, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(requires_grad)


def assert_same_values_and_gradients(ours, reference, inputs):
    left, right = ours(*inputs), reference(*inputs)
    torch.testing.assert_close(left, right, **CLOSE)
    weight = randn(*left.shape, seed=99, requires_grad=False)
    for a, b in zip(
        torch.autograd.grad(left, inputs, weight), torch.autograd.grad(right, inputs, weight), strict=True
    ):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_torch(shape):
    inputs = (randn(*shape), randn(19, shape[-1], seed=1), randn(19, seed=2))
    assert_same_values_and_gradients(linear, F.linear, inputs)
    assert_same_values_and_gradients(linear, F.linear, inputs[:2])


def test_linear_names_the_widths_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"linear: x must be \(\.\.\., 3\) for a weight \(5, 3\); got \(2, 5\)"
    ):
        linear(torch.zeros(2, 5), torch.zeros(5, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_equals_torch(shape):
    D = shape[-1]
    inputs = (randn(*shape), randn(D, seed=1), randn(D, seed=2))
    assert_same_values_and_gradients(layer_norm, lambda x, w, b: F.layer_norm(x, (D,), w, b), inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_equals_torch(shape):
    D = shape[-1]
    inputs = (randn(*shape), randn(D, seed=1))
    assert_same_values_and_gradients(rms_norm, lambda x, w: F.rms_norm(x, (D,), w, eps=1e-6), inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_and_relu_equal_torch(shape):
    assert_same_values_and_gradients(gelu, F.gelu, (randn(*shape),))
    assert_same_values_and_gradients(relu, F.relu, (randn(*shape),))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_derivatives_agree_with_finite_differences(check):
    x, weight, bias = randn(3, 5), randn(5, seed=1), randn(5, seed=2)
    assert check(gelu, (x,))
    assert check(layer_norm, (x, weight, bias))
    assert check(rms_norm, (x, weight))
    assert check(linear, (x, randn(2, 5, seed=3), randn(2, seed=4)))


def test_gradients_by_hand_are_the_gradients():
    x, weight, bias = randn(2, 3, 5), randn(5, seed=1), randn(5, seed=2)
    grad_out = randn(2, 3, 5, seed=3, requires_grad=False)
    for eps in (1e-5, 0.3):
        expected = torch.autograd.grad(layer_norm(x, weight, bias, eps), x, grad_out)[0]
        torch.testing.assert_close(layer_norm_grad(x, weight, grad_out, eps), expected, **CLOSE)
    expected = torch.autograd.grad(gelu(x), x, grad_out)[0]
    torch.testing.assert_close(gelu_grad(x) * grad_out, expected, **CLOSE)


def test_layer_norm_gradient_has_no_shift_and_no_stretch():
    # The output does not feel x + c or c x (eps aside), so the gradient is orthogonal to both directions.
    x = randn(7, 11)
    (gradient,) = torch.autograd.grad(
        layer_norm(x, torch.ones(11), torch.zeros(11), eps=0.0), x, randn(7, 11, seed=1)
    )
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), **CLOSE)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close((gradient * centred).sum(-1), torch.zeros(7, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_norms_hold_in_float32_at_extremes(scale):
    x = randn(5, 31, dtype=torch.float32, requires_grad=False) * scale
    one, zero = torch.ones(31), torch.zeros(31)
    # float32 rounds at 6e-8; a sum of 31 squares and a root lose at most a few of these.
    torch.testing.assert_close(layer_norm(x, one, zero), F.layer_norm(x, (31,)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rms_norm(x, one), F.rms_norm(x, (31,), eps=1e-6), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_norms_hide_nothing(bad):
    x = torch.ones(3, 5)
    x[1, 2] = bad
    for out in (layer_norm(x, torch.ones(5), torch.zeros(5)), rms_norm(x, torch.ones(5))):
        assert not out[1].isfinite().all()
        assert out[[0, 2]].isfinite().all()


def test_relu_and_gelu_keep_nan_and_the_tails():
    x = torch.tensor([float("nan"), -1e4, 1e4, 0.0], requires_grad=True)
    for function in (relu, gelu):
        out = function(x)
        assert out[0].isnan()
        assert out[1:].tolist() == [0.0, 1e4, 0.0]
        assert torch.autograd.grad(out[1:].sum(), x)[0][1:3].tolist() == [0.0, 1.0]


def test_embedding_equals_torch_on_values_and_gradients():
    weight_VD, tokens = randn(7, 3), torch.tensor([[0, 6, 6], [2, 2, 2]])
    assert_same_values_and_gradients(
        lambda w: embedding(w, tokens), lambda w: F.embedding(tokens, w), (weight_VD,)
    )


def test_embedding_asks_for_integers():
    with pytest.raises(
        ValueError, match=r"embedding: tokens must be integers; got torch\.float32\. Use tokens"
    ):
        embedding(torch.zeros(3, 2), torch.zeros(2))


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, layer_norm_grad])
def test_norms_name_the_weight_that_does_not_fit(norm):
    arguments = (torch.ones(2, 5), torch.ones(3)) + (() if norm is rms_norm else (torch.ones(3),))
    message = rf"{norm.__name__}: weight_D must be \(5,\), the last axis of x; got \(3,\)"
    with pytest.raises(ValueError, match=message):
        norm(*arguments)


def feed_forward_params(*lead):
    shapes = {"up.weight": (11, 5), "up.bias": (11,), "down.weight": (5, 11), "down.bias": (5,)}
    return {name: randn(*lead, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(("ours", "theirs"), [(gelu, F.gelu), (relu, F.relu)])
def test_feed_forward_equals_torch(ours, theirs):
    params = feed_forward_params()

    def reference(x, up, up_bias, down, down_bias):
        return F.linear(theirs(F.linear(x, up, up_bias)), down, down_bias)

    def candidate(x, *values):
        return feed_forward(dict(zip(params, values, strict=True)), x, activation=ours)

    assert_same_values_and_gradients(candidate, reference, (randn(2, 3, 5, seed=9), *params.values()))


def whole_layer(params, x):
    x = layer_norm(x, params["up.bias"][:5] + 2, params["down.bias"])
    return rms_norm(feed_forward(params, x), params["down.bias"]).square().sum()


def test_vmap_equals_loop_and_both_ways_of_taking_gradients():
    R = 3
    params, x_RBLD = feed_forward_params(R), randn(R, 2, 7, 5, seed=8, requires_grad=False)
    loop = [whole_layer({k: v[r] for k, v in params.items()}, x_RBLD[r]) for r in range(R)]
    expected = torch.autograd.grad(torch.stack(loop).sum(), list(params.values()))
    losses_R = vmap(whole_layer)(params, x_RBLD)
    torch.testing.assert_close(losses_R, torch.stack(loop), **CLOSE)
    outside = torch.autograd.grad(losses_R.sum(), list(params.values()))  # vmap forward, one backward
    inside = vmap(grad(whole_layer))(params, x_RBLD)
    for a, b, c in zip(outside, inside.values(), expected, strict=True):
        torch.testing.assert_close(a, c, **CLOSE)
        torch.testing.assert_close(b, c, **CLOSE)


def test_a_broken_norm_is_caught():
    # The law broken on purpose: variance divided by D - 1, as torch.var does by default.
    def broken(x, weight_D, bias_D):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * weight_D + bias_D

    inputs = (randn(3, 5), randn(5, seed=1), randn(5, seed=2))
    with pytest.raises(AssertionError, match="not close"):
        assert_same_values_and_gradients(broken, lambda x, w, b: F.layer_norm(x, (5,), w, b), inputs)
