import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from stabviz.ops import (
    attention_weights,
    causal_mask,
    cosine_attention,
    multi_head_attention,
    padding_mask,
    qk_clip,
    rms_norm,
    scaled_dot_product_attention,
    scaled_dot_product_attention_grad,
    soft_cap,
    softmax,
    softmax_grad,
    tiled_attention,
)

# float64 against float64: about 1e-16 per operation over sums of tens of terms.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
B, H, L, M, K = 2, 3, 5, 7, 11


def randn(*shape, seed=0, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(requires_grad)


def qkv(b=B, h=H, m=M, length=L, k=K, lead=(), dtype=torch.float64):
    return (
        randn(*lead, b, h, length, k, dtype=dtype),
        randn(*lead, b, h, m, k, seed=1, dtype=dtype),
        randn(*lead, b, h, m, k, seed=2, dtype=dtype),
    )


def some_mask(*shape, seed=3):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[..., 0] = True
    return mask


def plain(query, key, value, **options):
    return scaled_dot_product_attention(query, key, value, **options)[0]


def assert_same(ours, reference, inputs, **tolerance):
    tolerance = tolerance or CLOSE
    left, right = ours(*inputs), reference(*inputs)
    torch.testing.assert_close(left, right, **tolerance)
    weight = randn(*left.shape, seed=99, requires_grad=False).to(left.dtype)
    lefts = torch.autograd.grad(left, inputs, weight)
    for a, b in zip(lefts, torch.autograd.grad(right, inputs, weight), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# ---- softmax


def test_softmax_by_hand():
    torch.testing.assert_close(softmax(torch.tensor([0.0, math.log(3.0)])), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_softmax_equals_torch(dim):
    assert_same(lambda x: softmax(x, dim), lambda x: F.softmax(x, dim), (randn(2, 3, 5),))


def test_softmax_derivatives():
    assert gradcheck(softmax, (randn(3, 5),))
    assert gradgradcheck(softmax, (randn(3, 5),))


def test_softmax_extremes():
    scores = torch.tensor([[1e4, -1e4, 1e4], [0.0, -torch.inf, 0.0], [1000.0, 0.0, -1000.0]])
    assert softmax(scores).tolist() == [[0.5, 0, 0.5], [0.5, 0, 0.5], [1, 0, 0]]
    assert softmax(torch.tensor([[3.0]])).item() == 1.0
    for bad in (torch.nan, torch.inf):
        assert softmax(torch.tensor([0.0, bad])).isnan().all()
    assert softmax(torch.full((2,), -torch.inf)).isnan().all()


def test_softmax_without_the_maximum_taken_off_is_caught():
    def naive(x):  # the law broken on purpose (PHENOMENA, wrong 11)
        return x.exp() / x.exp().sum(-1, keepdim=True)

    large = torch.tensor([[1000.0, 999.0]], dtype=torch.float64, requires_grad=True)
    assert naive(large).isnan().all()
    with pytest.raises(AssertionError, match="not close"):
        assert_same(naive, lambda x: F.softmax(x, -1), (large,))
    assert_same(softmax, lambda x: F.softmax(x, -1), (large,))


# ---- masks


def test_masks_by_hand():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(1, 4).tolist() == [[True] * 4]
    mask = padding_mask(torch.tensor([0, 2, 5]), 5)
    assert mask.shape == (3, 1, 1, 5)
    assert mask.sum(-1).flatten().tolist() == [0, 2, 5]


def test_masks_name_what_does_not_fit():
    with pytest.raises(ValueError, match=r"causal_mask: M must be at least L = 5; got 3"):
        causal_mask(5, 3)
    with pytest.raises(ValueError, match=r"padding_mask: lengths_B must be a vector; got shape \(2, 1\)"):
        padding_mask(torch.ones(2, 1, dtype=torch.int64), 3)


# ---- scaled dot-product attention


def test_attention_by_hand():
    # scores 0 and ln 3 (K = 1, scale 1): weights 1/4, 3/4 -> out 1/4 * 0 + 3/4 * 8; entropy of (1/4, 3/4)
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([0.0, math.log(3.0)]).reshape(1, 1, 2, 1)
    value = torch.tensor([0.0, 8.0]).reshape(1, 1, 2, 1)
    out, measures = scaled_dot_product_attention(query, key, value)
    assert out.item() == pytest.approx(6.0, rel=1e-6)
    assert measures.max_logit_H.item() == pytest.approx(math.log(3.0), rel=1e-6)
    assert measures.entropy_H.item() == pytest.approx(
        -0.25 * math.log(0.25) - 0.75 * math.log(0.75), rel=1e-6
    )


MASKS = {
    "none": None,
    "lm": some_mask(L, M),
    "padding": padding_mask(torch.tensor([2, 7]), M),
    "full": some_mask(B, H, L, M),
    "query": torch.ones(B, 1, L, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("name", MASKS)
def test_attention_equals_torch(name, scale):
    mask = MASKS[name]
    for ours in (plain, lambda *a, **o: tiled_attention(*a, tile=3, **o)):
        assert_same(
            lambda *a, ours=ours: ours(*a, mask=mask, scale=scale),
            lambda *a: F.scaled_dot_product_attention(*a, attn_mask=mask, scale=scale),
            qkv(),
        )


@settings(max_examples=40, deadline=None)
@given(
    b=st.sampled_from([1, 2]),
    h=st.sampled_from([1, 3]),
    length=st.sampled_from([1, 2, 5, 17]),
    k=st.sampled_from([1, 7]),
    tile=st.sampled_from([1, 4, 13, 128]),
    size=st.sampled_from([1.0, 30.0, 1e4]),
)
def test_causal_attention_equals_torch_on_many_shapes(b, h, length, k, tile, size):
    query, key, value = qkv(b, h, length, length, k)
    query = (query.detach() * size).requires_grad_()
    reference = lambda *a: F.scaled_dot_product_attention(*a, is_causal=True)  # noqa: E731
    # Logits up to 1e4 have a rounding of 1e-12 in float64, which exp passes on; gradients are as large as
    # size.
    tolerance = {"rtol": 1e-7, "atol": 1e-8 * size}
    assert_same(lambda *a: plain(*a, causal=True), reference, (query, key, value), **tolerance)
    assert_same(
        lambda *a: tiled_attention(*a, causal=True, tile=tile), reference, (query, key, value), **tolerance
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_float32_is_near_float64(causal):
    inputs = qkv(length=13, m=13)
    singles = tuple(x.detach().float() for x in inputs)
    # float32 rounds at 6e-8: a softmax over 13 logits of size 3 keeps about six digits.
    for ours in (plain, tiled_attention):
        torch.testing.assert_close(
            ours(*singles, causal=causal).double(),
            plain(*inputs, causal=causal).detach(),
            rtol=1e-5,
            atol=2e-6,
        )


OPTIONS = [{}, {"causal": True}, {"softcap": 0.7}, {"causal": True, "softcap": torch.tensor(2.0)}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_attention_derivatives(check, options):
    inputs = qkv(1, 2, 5, 5, 3)
    assert check(lambda *a: plain(*a, **options), inputs)
    assert check(lambda *a: tiled_attention(*a, tile=2, **options), inputs)


def dropped(*shape, share=0.4, seed=70):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) >= share).double() / (1 - share)


@pytest.mark.parametrize("mask", [None, "lm"])
def test_weight_scale_is_dropout_of_the_weights(mask):
    scale_BHLM, mask = dropped(B, H, L, M), MASKS[mask] if mask else None

    def reference(query, key, value):
        scores = query @ key.mT / math.sqrt(K)
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return (F.softmax(scores, -1) * scale_BHLM) @ value

    assert_same(lambda *a: plain(*a, mask=mask, weight_scale=scale_BHLM), reference, qkv())
    _, with_it = scaled_dot_product_attention(*qkv(), mask=mask, weight_scale=scale_BHLM)
    _, without = scaled_dot_product_attention(*qkv(), mask=mask)
    torch.testing.assert_close(
        with_it.entropy_H, without.entropy_H
    )  # measured before the weights are dropped


def test_weight_scale_derivatives_and_vmap():
    scale = dropped(1, 2, 3, 3)
    assert gradcheck(lambda *a: plain(*a, weight_scale=scale), qkv(1, 2, 3, 3, 2))
    assert gradgradcheck(lambda *a: plain(*a, weight_scale=scale), qkv(1, 2, 3, 3, 2))
    inputs, scales_R = qkv(), dropped(5, H, L, M)
    many = vmap(lambda c: plain(*inputs, weight_scale=c))(scales_R)
    torch.testing.assert_close(many, torch.stack([plain(*inputs, weight_scale=c) for c in scales_R]), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_under_autocast_trains_and_is_as_near_as_torchs(dtype):
    inputs = [x.detach().float().requires_grad_() for x in qkv(length=13, m=13)]
    exact = torch.autograd.grad(plain(*inputs).square().sum(), inputs)

    def gradients(attend):
        with torch.autocast("cpu", dtype=dtype):
            out = attend(*(x.to(dtype) for x in inputs))
            assert out.dtype == dtype
        return torch.autograd.grad(out.float().square().sum(), inputs)

    def error(found):
        return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    # bfloat16 keeps 8 bits: a per cent or so; torch's own kernel sets the scale.
    assert error(gradients(plain)) < 2 * error(gradients(F.scaled_dot_product_attention))


def test_attention_derivatives_with_an_empty_row():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert gradcheck(lambda *a: plain(*a, mask=mask), qkv(1, 2, 3, 3, 2))
    assert gradgradcheck(lambda *a: plain(*a, mask=mask), qkv(1, 2, 3, 3, 2))
    assert gradcheck(lambda *a: tiled_attention(*a, mask=mask, tile=2), qkv(1, 2, 3, 3, 2))


def test_attention_weights_mix_the_values_and_sum_to_one_or_zero():
    mask = some_mask(L, M)
    mask[2] = False
    query, key, value = qkv()
    weights_BHLM = attention_weights(query, key, mask=mask)
    torch.testing.assert_close(weights_BHLM @ value, plain(query, key, value, mask=mask), **CLOSE)
    expected = torch.ones(L, dtype=torch.float64)
    expected[2] = 0.0
    torch.testing.assert_close(weights_BHLM.sum(-1), expected.expand(B, H, L), **CLOSE)
    assert gradcheck(lambda q, k: attention_weights(q, k, mask=mask), (query, key))


def naive_measures(query, key, mask, scale):
    scores = query @ key.mT * scale
    allowed = mask.expand(scores.shape)
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    rows = -(weights * weights.clamp_min(1e-300).log()).sum(-1)
    return scores.abs().masked_fill(~allowed, 0.0).amax((0, 2, 3)), rows.mean((0, 2))


@pytest.mark.parametrize("shift", [0.0, -40.0])
def test_measures_equal_the_plain_definition_and_carry_no_graph(shift):
    query, key, value = qkv()
    key = key.detach() + shift  # with the shift the largest |logit| is often a negative logit
    mask = some_mask(B, H, L, M)
    _, measures = scaled_dot_product_attention(query, key, value, mask=mask, scale=0.4)
    largest, entropy = naive_measures(query.detach(), key, mask, 0.4)
    torch.testing.assert_close(measures.max_logit_H, largest, **CLOSE)
    torch.testing.assert_close(measures.entropy_H, entropy, rtol=1e-9, atol=1e-9)
    assert not measures.max_logit_H.requires_grad
    assert not measures.entropy_H.requires_grad


def test_measures_may_be_left_out():
    out, measures = scaled_dot_product_attention(*qkv(), measure=False)
    assert measures.max_logit_H is None
    assert measures.entropy_H is None
    torch.testing.assert_close(out, plain(*qkv()), rtol=0, atol=0)


def test_uniform_weights_have_entropy_log_m():
    _, measures = scaled_dot_product_attention(torch.zeros(B, H, L, K), *qkv(dtype=torch.float32)[1:])
    torch.testing.assert_close(measures.entropy_H, torch.full((H,), math.log(M)))
    assert measures.max_logit_H.tolist() == [0.0] * H


@pytest.mark.parametrize("ours", [plain, lambda *a, **o: tiled_attention(*a, tile=3, **o)])
def test_fully_masked_rows_give_zeros_and_finite_gradients(ours):
    inputs = qkv()
    mask = some_mask(B, 1, L, M)
    mask[0, :, 1] = False
    mask[1] = False
    out = ours(*inputs, mask=mask)
    assert out[0, :, 1].abs().max() == 0
    assert out[1].abs().max() == 0
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert gradient.isfinite().all()
        assert gradient[1].abs().max() == 0
    kept = mask[0, 0].any(-1)
    reference = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(out[0, :, kept], reference[0, :, kept], **CLOSE)


def test_fully_masked_rows_do_not_count_in_the_measures():
    query, key, value = qkv()
    mask = torch.ones(B, 1, L, M, dtype=torch.bool)
    mask[:, :, 1:] = False
    _, measures = scaled_dot_product_attention(query, key, value, mask=mask)
    _, first_row = scaled_dot_product_attention(query[:, :, :1], key, value)
    torch.testing.assert_close(measures.entropy_H, first_row.entropy_H, **CLOSE)
    torch.testing.assert_close(measures.max_logit_H, first_row.max_logit_H, **CLOSE)
    _, nothing = scaled_dot_product_attention(query, key, value, mask=torch.zeros_like(mask))
    assert nothing.entropy_H.tolist() == nothing.max_logit_H.tolist() == [0.0] * H


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 5.0}, {"causal": True}, {"causal": True, "softcap": 5.0}]
)
def test_a_non_finite_query_gives_nan_and_leaves_its_neighbours(bad, options):
    query, key, value = (x.detach() for x in qkv(m=L))
    query[1, 2, 3, 4] = bad
    for out in (plain(query, key, value, **options), tiled_attention(query, key, value, tile=2, **options)):
        assert out[1, 2, 3].isnan().all()
        assert out.isnan().sum() == K
    assert not scaled_dot_product_attention(query, key, value, **options)[1].max_logit_H[2].isfinite()


@pytest.mark.parametrize("ours", [plain, tiled_attention])
def test_scores_that_overflow_give_nan_even_under_a_softcap(ours):
    huge = torch.full((1, 1, 2, 3), 1e30)
    assert ours(huge, huge, torch.ones(1, 1, 2, 3), softcap=5.0).isnan().all()
    assert ours(huge, -huge, torch.ones(1, 1, 2, 3)).isnan().all()  # every score -inf


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_1e4_are_exact_in_float32(size):
    # One key matches by 1e4, the others by 0 or -1e4: the weight on it is exactly 1, the entropy exactly 0.
    query, key = torch.full((1, 1, 1, 1), size), torch.tensor([1.0, 0.0, -1.0]).reshape(1, 1, 3, 1)
    value = torch.tensor([2.0, 3.0, 5.0]).reshape(1, 1, 3, 1)
    out, measures = scaled_dot_product_attention(query, key, value, scale=1.0)
    assert out.item() == (2.0 if size > 0 else 5.0)
    assert tiled_attention(query, key, value, scale=1.0, tile=1).item() == out.item()
    assert measures.max_logit_H.item() == 1e4
    assert abs(measures.entropy_H.item()) < 1e-20


def test_length_one():
    query, key, value = qkv(length=1, m=1)
    torch.testing.assert_close(plain(query, key, value, causal=True), value, **CLOSE)
    torch.testing.assert_close(tiled_attention(query, key, value, causal=True), value, **CLOSE)


def test_the_future_does_not_reach_the_past():
    query, key, value = (x.detach() for x in qkv(m=L))
    before = plain(query, key, value, causal=True)
    key[:, :, 3:], value[:, :, 3:] = 100.0, -100.0
    after = plain(query, key, value, causal=True)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3:], after[:, :, 3:])


@pytest.mark.parametrize("ours", [plain, lambda *a, **o: tiled_attention(*a, tile=3, **o)])
def test_softcap_equals_its_formula_and_inf_is_off(ours):
    def reference(query, key, value):
        scores = query @ key.mT / math.sqrt(K)
        return F.softmax(0.9 * torch.tanh(scores / 0.9), -1) @ value

    assert_same(lambda *a: ours(*a, softcap=0.9), reference, qkv())
    assert_same(lambda *a: ours(*a, softcap=torch.tensor(0.9, dtype=torch.float64)), reference, qkv())
    for off in (torch.inf, torch.tensor(torch.inf)):
        assert_same(lambda *a, off=off: ours(*a, softcap=off), ours, qkv())


def test_the_logit_is_measured_before_the_softcap_and_the_entropy_after_it():
    inputs = [100 * x.detach() for x in qkv()]
    _, measures = scaled_dot_product_attention(*inputs, softcap=0.5)
    _, without = scaled_dot_product_attention(*inputs)
    torch.testing.assert_close(measures.max_logit_H, without.max_logit_H, **CLOSE)
    assert measures.max_logit_H.min() > 100
    # Scores within +-0.5: a weight is at most e times another, so that the entropy is near that of M keys.
    assert measures.entropy_H.min() > math.log(M) - 0.2
    assert without.entropy_H.max() < 0.2


def test_soft_cap_by_hand():
    logits = torch.tensor([0.0, 1000.0, -1000.0, 20.0])
    expected = torch.tensor([0.0, 20.0, -20.0, 20 * math.tanh(1)])
    torch.testing.assert_close(soft_cap(logits, 20.0), expected)
    assert soft_cap(logits, torch.tensor(torch.inf)).tolist() == logits.tolist()
    assert soft_cap(torch.tensor([torch.inf, torch.nan]), 20.0).isnan().all()


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax_gradient_by_hand_is_the_gradient(dim):
    scores, grad_out = randn(2, 3, 5), randn(2, 3, 5, seed=1, requires_grad=False)
    weights = softmax(scores, dim)
    expected = torch.autograd.grad(weights, scores, grad_out)[0]
    torch.testing.assert_close(softmax_grad(weights.detach(), grad_out, dim), expected, **CLOSE)


@pytest.mark.parametrize("softcap", [None, 0.7, torch.tensor(torch.inf, dtype=torch.float64)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("name", [*MASKS, "empty", "causal"])
def test_attention_gradient_by_hand_is_the_gradient(name, scale, softcap):
    mask = some_mask(B, 1, L, M)
    mask[0, :, 1] = mask[1] = False
    options = {"mask": mask if name == "empty" else MASKS.get(name), "scale": scale, "softcap": softcap}
    options |= {"causal": name == "causal", "weight_scale": dropped(B, H, L, L if name == "causal" else M)}
    inputs = qkv(m=L) if name == "causal" else qkv()
    grad_out = randn(B, H, L, K, seed=4, requires_grad=False)
    expected = torch.autograd.grad(plain(*inputs, **options), inputs, grad_out)
    by_hand = scaled_dot_product_attention_grad(*(x.detach() for x in inputs), grad_out, **options)
    for ours, theirs in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_tensor_scale_takes_a_gradient():
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: plain(*qkv(), scale=s), (scale,))


def loss(query, key, value, mask, softcap, tiled):
    options = {"mask": mask, "softcap": softcap}
    out = (
        tiled_attention(query, key, value, tile=3, **options)
        if tiled
        else plain(query, key, value, **options)
    )
    return out.square().sum()


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("mask_axis", [None, 0])
@pytest.mark.parametrize("softcap_axis", [None, 0])
@pytest.mark.parametrize("batched", [(0, 0, 0), (0, None, None), (None, None, 0), (1, 0, None)])
def test_vmap_equals_loop_and_both_ways_of_taking_gradients(batched, softcap_axis, mask_axis, tiled):
    R = 13
    inputs = tuple(
        x if axis is None else randn(R, *x.shape, seed=20 + i).movedim(0, axis).detach().requires_grad_()
        for i, (x, axis) in enumerate(zip(qkv(), batched, strict=True))
    )
    mask = some_mask(L, M) if mask_axis is None else some_mask(R, 1, L, M)
    softcap = (
        None
        if softcap_axis is None
        else torch.linspace(0.5, 3.0, R).index_fill(0, torch.tensor([4]), torch.inf)
    )
    axes = (*batched, mask_axis, softcap_axis, None)

    def pick(x, axis, r):
        return x if axis is None else x.select(axis, r)

    loop = torch.stack(
        [
            loss(*(pick(x, a, r) for x, a in zip((*inputs, mask, softcap), axes[:5], strict=True)), tiled)
            for r in range(R)
        ]
    )
    expected = torch.autograd.grad(loop.sum(), inputs)
    losses_R = vmap(loss, in_dims=axes)(*inputs, mask, softcap, tiled)
    torch.testing.assert_close(losses_R, loop, **CLOSE)
    outside = torch.autograd.grad(losses_R.sum(), inputs)  # vmap forward, one backward
    inside = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=axes)(*inputs, mask, softcap, tiled)
    for a, b, c, axis in zip(outside, inside, expected, batched, strict=True):
        torch.testing.assert_close(a, c, **CLOSE)
        torch.testing.assert_close(b.sum(0) if axis is None else b.movedim(0, axis), c, **CLOSE)


def test_vmap_keeps_measures_by_run():
    query, key, value = qkv(lead=(13,))

    def measured(*a):
        measures = scaled_dot_product_attention(*a, causal=False)[1]
        return measures.max_logit_H, measures.entropy_H

    logits_RH, entropy_RH = vmap(measured)(query, key, value)
    for r in range(13):
        single = measured(query[r], key[r], value[r])
        torch.testing.assert_close((logits_RH[r], entropy_RH[r]), single, **CLOSE)


# ---- tiled: memory


class LargestTensor(TorchDispatchMode):
    """Watches every operation and keeps the size of the largest tensor that one made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_tiled_memory_is_linear_in_length_forward_and_backward(causal):
    def largest(ours, length):
        inputs = qkv(1, 1, length, length, 8, dtype=torch.float32)
        with LargestTensor() as seen:
            torch.autograd.grad(ours(*inputs, causal=causal).sum(), inputs)
        return seen.numel

    assert largest(lambda *a, **o: tiled_attention(*a, tile=16, **o), 512) == 512 * 16
    assert largest(lambda *a, **o: tiled_attention(*a, tile=16, **o), 1024) == 1024 * 16
    assert largest(plain, 512) == 512 * 512


# ---- errors


@pytest.mark.parametrize("function", [scaled_dot_product_attention, tiled_attention])
def test_attention_names_what_does_not_fit(function):
    query, key, value = (x.detach() for x in qkv())
    name = function.__name__
    with pytest.raises(ValueError, match=rf"{name}: query, key and value must have 4 axes .* got 3, 4, 4"):
        function(query[0], key, value)
    with pytest.raises(ValueError, match=rf"{name}: key_BHMK must be \(2, 3, M, 11\); got \(2, 3, 7, 5\)"):
        function(query, key[..., :5], value)
    with pytest.raises(
        ValueError, match=rf"{name}: value_BHMK must be \(2, 3, 7, \.\.\.\); got \(2, 3, 6, 11\)"
    ):
        function(query, key, value[:, :, :6])
    with pytest.raises(ValueError, match=rf"{name}: causal must be False when L != M; got L=5, M=7"):
        function(query, key, value, causal=True)
    with pytest.raises(
        ValueError, match=rf"{name}: mask must be bool, True = may attend; got torch\.float32"
    ):
        function(query, key, value, mask=torch.zeros(L, M))


def test_tiled_attention_names_a_bad_tile():
    with pytest.raises(ValueError, match=r"tiled_attention: tile must be at least 1; got 0"):
        tiled_attention(*qkv(), tile=0)


# ---- laws broken on purpose


@pytest.mark.parametrize(
    "broken",
    [
        lambda q, k, v: F.softmax(q @ k.mT / K, -1) @ v,  # scaled by 1/K, not 1/sqrt(K)
        lambda q, k, v: F.softmax(q @ k.mT / math.sqrt(K), -2) @ v,  # normalised over queries: L for M
        lambda q, k, v: F.softmax(q @ k.mT / math.sqrt(K), -1).detach() @ v + 0 * (q.sum() + k.sum()),
    ],
)
def test_broken_attention_is_caught(broken):
    with pytest.raises(AssertionError, match="not close"):
        assert_same(broken, F.scaled_dot_product_attention, qkv())


# ---- many heads


def mha_params(D=12, qk_norm=False, bias=True, seed=0):
    params = {
        f"{n}.weight": randn(D, D, seed=seed + i) for i, n in enumerate(("query", "key", "value", "output"))
    }
    if bias:
        params |= {
            f"{n}.bias": randn(D, seed=seed + 9 + i)
            for i, n in enumerate(("query", "key", "value", "output"))
        }
    if qk_norm:
        params |= {"query_norm.weight": randn(4, seed=31), "key_norm.weight": randn(4, seed=32)}
    return params


def reference_mha(D, heads, params):
    module = torch.nn.MultiheadAttention(D, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([params[f"{n}.weight"] for n in ("query", "key", "value")]))
        module.in_proj_bias.copy_(torch.cat([params[f"{n}.bias"] for n in ("query", "key", "value")]))
        module.out_proj.weight.copy_(params["output.weight"])
        module.out_proj.bias.copy_(params["output.bias"])
    return module


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_equals_torch(cross, masked):
    D, heads = 12, 3
    params = mha_params(D)
    module = reference_mha(D, heads, params)
    x_BLD = randn(2, 5, D, seed=50)
    memory = randn(2, 7, D, seed=51) if cross else x_BLD
    mask = some_mask(5, memory.shape[1]) if masked else None
    out, _ = multi_head_attention(params, x_BLD, heads=heads, memory_BMD=memory if cross else None, mask=mask)
    expected, _ = module(x_BLD, memory, memory, attn_mask=None if mask is None else ~mask, need_weights=False)
    torch.testing.assert_close(out, expected, **CLOSE)
    names = ("query", "key", "value", "output")
    weight = randn(*out.shape, seed=60, requires_grad=False)
    ours = torch.autograd.grad(
        out, [x_BLD, *(params[f"{n}.{p}"] for p in ("weight", "bias") for n in names)], weight
    )
    theirs = torch.autograd.grad(
        expected,
        [x_BLD, module.in_proj_weight, module.out_proj.weight, module.in_proj_bias, module.out_proj.bias],
        weight,
    )
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    torch.testing.assert_close(torch.cat(ours[1:4]), theirs[1], **CLOSE)
    torch.testing.assert_close(ours[4], theirs[2], **CLOSE)
    torch.testing.assert_close(torch.cat(ours[5:8]), theirs[3], **CLOSE)
    torch.testing.assert_close(ours[8], theirs[4], **CLOSE)


def test_multi_head_attention_takes_params_without_bias():
    params = mha_params(bias=False)
    zero = {f"{n}.bias": torch.zeros(12, dtype=torch.float64) for n in ("query", "key", "value", "output")}
    x_BLD = randn(2, 5, 12)
    torch.testing.assert_close(
        multi_head_attention(params, x_BLD, heads=3)[0],
        multi_head_attention(params | zero, x_BLD, heads=3)[0],
    )


def test_qk_norm_bounds_the_logit_whatever_the_weights():
    params = mha_params(qk_norm=True) | {
        n: torch.ones(4, dtype=torch.float64) for n in ("query_norm.weight", "key_norm.weight")
    }
    params |= {n: params[n] * 1e3 for n in ("query.weight", "key.weight")}
    x_BLD = randn(2, 5, 12)
    _, measures = multi_head_attention(params, x_BLD, heads=3)
    # RMS 1 over 4 features: each norm is 2, so |q k| / sqrt(4) <= 2.
    assert measures.max_logit_H.max() <= 2.0 + 1e-9
    without = {k: v for k, v in params.items() if "norm" not in k}
    assert multi_head_attention(without, x_BLD, heads=3)[1].max_logit_H.min() > 1e3


def test_qk_norm_equals_its_parts():
    params, x_BLD = mha_params(qk_norm=True), randn(2, 5, 12)

    def project(name):
        return (
            (x_BLD @ params[f"{name}.weight"].T + params[f"{name}.bias"]).reshape(2, 5, 3, 4).transpose(1, 2)
        )

    mixed = F.scaled_dot_product_attention(
        rms_norm(project("query"), params["query_norm.weight"]),
        rms_norm(project("key"), params["key_norm.weight"]),
        project("value"),
        is_causal=True,
    )
    expected = mixed.transpose(1, 2).reshape(2, 5, 12) @ params["output.weight"].T + params["output.bias"]
    torch.testing.assert_close(
        multi_head_attention(params, x_BLD, heads=3, causal=True)[0], expected, **CLOSE
    )


def test_multi_head_attention_under_vmap_equals_loop():
    params_R = {
        k: torch.stack([v, v * 0.5, -v]).detach().requires_grad_()
        for k, v in mha_params(qk_norm=True).items()
    }
    x_RBLD = randn(3, 2, 5, 12, seed=70, requires_grad=False)

    def objective(params, x_BLD):
        return multi_head_attention(params, x_BLD, heads=3, causal=True, softcap=2.0)[0].square().sum()

    losses_R = vmap(objective)(params_R, x_RBLD)
    loop = torch.stack([objective({k: v[r] for k, v in params_R.items()}, x_RBLD[r]) for r in range(3)])
    torch.testing.assert_close(losses_R, loop, **CLOSE)
    values = list(params_R.values())
    for a, b, c in zip(
        torch.autograd.grad(losses_R.sum(), values),
        torch.autograd.grad(loop.sum(), values),
        vmap(grad(objective))(params_R, x_RBLD).values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)
        torch.testing.assert_close(c, b, **CLOSE)


def test_multi_head_attention_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"multi_head_attention: heads must divide the width 12; got 5"):
        multi_head_attention(mha_params(), randn(2, 5, 12), heads=5)
    params = mha_params(qk_norm=True)
    del params["key_norm.weight"]
    with pytest.raises(
        ValueError, match=r"must hold both query_norm\.weight and key_norm\.weight, .*; got only"
    ):
        multi_head_attention(params, randn(2, 5, 12), heads=3)


# ---- QK-clip


def test_qk_clip_brings_the_logit_of_a_loud_head_to_the_threshold_and_leaves_the_others():
    H, K, D, L = 3, 2, 5, 7
    query_weight, key_weight, x_BLD = randn(H * K, D), randn(H * K, D), randn(1, L, D)

    def largest(query_weight, key_weight):
        query, key = (
            (x_BLD @ weight.mT).unflatten(-1, (H, K)).transpose(1, 2) for weight in (query_weight, key_weight)
        )
        return scaled_dot_product_attention(query, key, key, causal=True)[1].max_logit_H

    before_H = largest(query_weight, key_weight)
    threshold = before_H.sort().values[1].item()  # one head above it, one on it, one below
    clipped = qk_clip(query_weight, key_weight, before_H, threshold)
    torch.testing.assert_close(largest(*clipped), before_H.clamp(max=threshold))
    rows = (before_H <= threshold).repeat_interleave(K)
    for new, old in zip(clipped, (query_weight, key_weight), strict=True):
        assert new.shape == old.shape
        assert torch.equal(new[rows], old[rows])
        assert not torch.equal(new[~rows], old[~rows])


def test_qk_clip_gives_each_side_the_root_and_leaves_a_head_that_saw_nan():
    query_weight, key_weight = torch.ones(4, 3), 2 * torch.ones(4, 3)
    logit_H = torch.tensor([100.0, 99.0, torch.nan, 1600.0])
    query, key = qk_clip(query_weight, key_weight, logit_H, 100.0)
    assert query[:, 0].tolist() == [1, 1, 1, 0.25]
    assert key[:, 0].tolist() == [2, 2, 2, 0.5]


def test_qk_clip_names_a_bad_threshold():
    with pytest.raises(ValueError, match=r"qk_clip: threshold must be > 0; got 0"):
        qk_clip(torch.ones(2, 1), torch.ones(2, 1), torch.ones(2), 0)


# ---- cosine attention


def test_cosine_attention_is_attention_of_unit_vectors_whatever_their_length():
    query, key, value = randn(2, 3, 5, 7), randn(2, 3, 5, 7), randn(2, 3, 5, 7)
    unit_query, unit_key = (F.normalize(x, dim=-1) for x in (query, key))
    expected, _ = scaled_dot_product_attention(unit_query, unit_key, value, causal=True, scale=4.0)
    for length in (1e-3, 1.0, 1e4):
        out = cosine_attention(length * query, key / length, value, mask=causal_mask(5), scale=4.0)
        torch.testing.assert_close(out, expected)


def test_cosine_attention_cannot_weigh_two_keys_further_apart_than_its_scale_lets_it():
    query, key = torch.tensor([[[[1e6]]]]), torch.tensor([[[[1e6], [-1e6]]]])
    value = torch.tensor([[[[0.0], [1.0]]]])
    least = cosine_attention(query, key, value, scale=10.0)
    assert least.item() == pytest.approx(1 / (1 + math.exp(20.0)), rel=1e-5)
