import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from stabviz.ops import (
    alignment,
    cpc_scores,
    info_nce,
    info_nce_in_batch,
    info_nce_symmetric,
    log_sum_exp,
    uniformity,
)

# float64 against float64: about 1e-16 per operation over sums of tens of terms.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
B, C, E, D = 5, 7, 11, 3


def randn(*shape, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


def cross_entropy_of(scores_BC, targets_B):
    return F.cross_entropy(scores_BC, targets_B)


def reference_info_nce(query, positive, negatives, temperature):
    scores = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives.T], dim=1) / temperature
    return cross_entropy_of(scores, torch.zeros(len(query), dtype=torch.int64))


def reference_in_batch(query, key, temperature):
    return cross_entropy_of(query @ key.T / temperature, torch.arange(len(query)))


def reference_symmetric(x, y, temperature):
    return (reference_in_batch(x, y, temperature) + reference_in_batch(y, x, temperature)) / 2


CASES = [
    (info_nce, reference_info_nce, (B, B, C)),
    (info_nce_in_batch, reference_in_batch, (B, B)),
    (info_nce_symmetric, reference_symmetric, (B, B)),
]


@pytest.mark.parametrize(("ours", "reference", "rows"), CASES)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 7.0])
def test_info_nce_equals_cross_entropy_on_values_and_gradients(ours, reference, rows, temperature):
    inputs = tuple(randn(n, E, seed=i) for i, n in enumerate(rows))
    left, right = ours(*inputs, temperature), reference(*inputs, temperature)
    torch.testing.assert_close(left, right, **CLOSE)
    for a, b in zip(torch.autograd.grad(left, inputs), torch.autograd.grad(right, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)  # gradients are up to 100 times the inputs


@pytest.mark.parametrize(("ours", "reference", "rows"), CASES)
def test_info_nce_derivatives_also_by_temperature(ours, reference, rows):
    inputs = tuple(randn(n, 2, seed=i) for i, n in enumerate(rows))
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ours, (*inputs, temperature))
    assert gradgradcheck(ours, (*inputs, temperature))


def test_info_nce_by_hand():
    # similarities 1 with the positive, 0 with two negatives: ln(e + 2) - 1
    query = torch.tensor([[1.0, 0.0, 0.0]])
    negatives = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert info_nce(query, query, negatives, 1.0).item() == pytest.approx(math.log(math.e + 2) - 1, rel=1e-6)


@pytest.mark.parametrize(("ours", "reference", "rows"), CASES)
def test_info_nce_of_a_collapsed_encoder_is_chance(ours, reference, rows):
    candidates = 1 + C if len(rows) == 3 else B
    same = [torch.ones(n, E) for n in rows]
    assert ours(*same, 0.1).item() == pytest.approx(math.log(candidates), rel=1e-6)


@pytest.mark.parametrize(("ours", "reference", "rows"), CASES)
def test_info_nce_extremes(ours, reference, rows):
    inputs = [torch.eye(B, E) * 100, torch.eye(B, E) * 100, torch.zeros(C, E)][: len(rows)]
    assert ours(*inputs, 1.0).item() == 0.0  # similarities of 1e4 on the diagonal
    inputs[0] = inputs[0].clone()
    inputs[0][1, 1] = torch.nan
    assert ours(*inputs, 1.0).isnan()


def test_in_batch_of_one_is_zero():
    assert info_nce_in_batch(torch.ones(1, E), torch.ones(1, E), 0.1).item() == 0.0


def test_symmetric_does_not_care_for_the_order():
    x, y = randn(B, E), randn(B, E, seed=1)
    torch.testing.assert_close(info_nce_symmetric(x, y, 0.3), info_nce_symmetric(y, x, 0.3), **CLOSE)
    assert not torch.isclose(info_nce_in_batch(x, y, 0.3), info_nce_in_batch(y, x, 0.3))


def test_a_lower_temperature_gives_a_larger_gradient():
    # PHENOMENA 14: tau .01/.05/.1/1 -> gradient norms falling; unit vectors, gradient by embedding.
    x, y = (F.normalize(randn(64, 16, seed=i).detach(), dim=1) for i in range(2))
    norms = [grad(info_nce_in_batch)(x, y, tau).norm().item() for tau in (0.01, 0.05, 0.1, 1.0)]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] > 5 * norms[-1]


def test_cpc_scores_equal_the_triple_sum():
    context, future, weight = randn(B, D), randn(B, E, seed=1), randn(D, E, seed=2)
    torch.testing.assert_close(
        cpc_scores(context, future, weight), torch.einsum("id,de,je->ij", context, weight, future), **CLOSE
    )
    torch.testing.assert_close(
        cpc_scores(context, future, weight)[1, 2], context[1] @ weight @ future[2], **CLOSE
    )
    assert gradcheck(cpc_scores, (context, future, weight))


def test_cpc_scores_on_the_diagonal_give_info_nce():
    context, future, weight = randn(B, D), randn(B, E, seed=1), randn(D, E, seed=2)
    scores_BB = cpc_scores(context, future, weight)
    loss = (log_sum_exp(scores_BB) - scores_BB.diagonal()).mean()
    torch.testing.assert_close(loss, info_nce_in_batch(context @ weight, future, 1.0), **CLOSE)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_equals_its_definition(alpha):
    x, y = randn(B, E), randn(B, E, seed=1)
    torch.testing.assert_close(alignment(x, y, alpha), (x - y).norm(dim=1).pow(alpha).mean(), **CLOSE)
    assert gradcheck(lambda x, y: alignment(x, y, alpha), (x, y))


def test_alignment_of_equal_pairs_is_zero_with_gradient_zero():
    x = randn(B, E)
    assert alignment(x, x.detach()).item() == 0.0
    assert (torch.autograd.grad(alignment(x, x.detach()), x)[0] == 0).all()


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_equals_its_definition(t):
    x = randn(B, E)
    pairs = F.pdist(x).square()
    torch.testing.assert_close(uniformity(x, t), pairs.mul(-t).exp().mean().log(), **CLOSE)
    assert gradcheck(lambda x: uniformity(x, t), (randn(B, 2),))


def test_uniformity_of_a_collapsed_set_is_zero_and_low_when_spread():
    assert uniformity(torch.ones(B, E)).item() == pytest.approx(0.0, abs=1e-6)
    spread = F.normalize(randn(64, E).detach(), dim=1)
    assert uniformity(spread) < -2.0
    # Far apart exp underflows; the log does not: one pair at distance^2 = 1e4.
    assert uniformity(torch.tensor([[0.0], [100.0]])).item() == -2e4


def test_contrastive_functions_name_what_does_not_fit():
    x = torch.zeros(B, E)
    with pytest.raises(
        ValueError, match=r"info_nce: positive_BE must be \(B, E\) like .*, \(5, 11\); got \(5, 3\)"
    ):
        info_nce(x, torch.zeros(B, 3), x, 1.0)
    with pytest.raises(ValueError, match=r"info_nce: negatives_CE must be \(C, 11\); got \(7, 3\)"):
        info_nce(x, x, torch.zeros(C, 3), 1.0)
    for function, name in ((info_nce_in_batch, "key_BE"), (info_nce_symmetric, "y_BE")):
        with pytest.raises(
            ValueError, match=rf"{function.__name__}: {name} must be \(B, E\) like .*; got \(7, 11\)"
        ):
            function(x, torch.zeros(C, E), 1.0)
    with pytest.raises(ValueError, match=r"alignment: y_BE must be \(B, E\) like .*; got \(7, 11\)"):
        alignment(x, torch.zeros(C, E))
    with pytest.raises(
        ValueError, match=r"cpc_scores: future_BE must have the batch of context_BD, 5; got 7"
    ):
        cpc_scores(x, torch.zeros(C, D), torch.zeros(E, D))
    with pytest.raises(ValueError, match=r"cpc_scores: weight_DE must be \(11, 3\); got \(3, 11\)"):
        cpc_scores(x, torch.zeros(B, D), torch.zeros(D, E))
    with pytest.raises(ValueError, match=r"uniformity: x_BE must be \(B, E\) with B >= 2; got \(1, 11\)"):
        uniformity(x[:1])


@pytest.mark.parametrize(
    "objective",
    [
        lambda x, y: info_nce(x, y, y[:3] + 1, 0.5),
        lambda x, y: info_nce_in_batch(x, y, 0.5),
        lambda x, y: info_nce_symmetric(x, y, 0.5),
        lambda x, y: cpc_scores(x, y, torch.eye(E, dtype=torch.float64)).square().sum(),
        alignment,
        lambda x, y: uniformity(x + y),
    ],
)
def test_contrastive_under_vmap_equals_loop(objective):
    x_RBE, y_RBE = randn(3, B, E), randn(3, B, E, seed=1, requires_grad=False)
    losses_R = vmap(objective)(x_RBE, y_RBE)
    loop = torch.stack([objective(x, y) for x, y in zip(x_RBE, y_RBE, strict=True)])
    torch.testing.assert_close(losses_R, loop, **CLOSE)
    expected = torch.autograd.grad(loop.sum(), x_RBE)[0]
    torch.testing.assert_close(torch.autograd.grad(losses_R.sum(), x_RBE)[0], expected, **CLOSE)
    torch.testing.assert_close(vmap(grad(objective))(x_RBE, y_RBE), expected, **CLOSE)


@pytest.mark.parametrize(
    "broken",
    [
        lambda x, y, tau: F.cross_entropy(y @ x.T / tau, torch.arange(B)),  # query and key swapped
        lambda x, y, tau: F.cross_entropy(x @ y.T * tau, torch.arange(B)),  # multiplied by the temperature
    ],
)
def test_a_broken_info_nce_is_caught(broken):
    x, y = randn(B, E), randn(B, E, seed=1)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(broken(x, y, 0.3), reference_in_batch(x, y, 0.3), **CLOSE)
