"""Checks of lesson 01: one mask from two, attention, a deciding pair, a diagnosis, merging two tiles."""

import math

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision, things
from stabviz.ops import scaled_dot_product_attention
from stabviz.seeds import generator


def _padding_only(lengths_B, L):
    return (torch.arange(L) < lengths_B[:, None])[:, None, None, :].expand(-1, 1, L, L)


def _masks_the_queries(lengths_B, L):
    real = torch.arange(L) < lengths_B[:, None]
    return real[:, None, :, None] & torch.ones(L, L, dtype=torch.bool).tril()


def _true_means_masked(lengths_B, L):
    return ~(_padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).tril())


def _one_for_each_head(lengths_B, L):
    return (_padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).tril()).expand(-1, 7, L, L)


def _looks_ahead(lengths_B, L):
    return _padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).triu()


def _edits_the_lengths(lengths_B, L):
    joined = _padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).tril()
    lengths_B.clamp_(max=1)
    return joined


@check(
    "01-masks",
    wrong=[
        _padding_only,
        _masks_the_queries,
        _true_means_masked,
        _one_for_each_head,
        _looks_ahead,
        _edits_the_lengths,
    ],
)
def masks_are_joined(solution):
    lengths_B = torch.tensor([3, 1])
    got = solution(lengths_B, 3)
    if not isinstance(got, torch.Tensor) or got.dtype != torch.bool:
        raise ExerciseFailed(f"the mask must be a tensor of bool, True = may attend; got {got!r:.100}")
    if got.shape != (2, 1, 3, 3):
        raise ExerciseFailed(f"the mask must have shape (B, 1, L, L) = (2, 1, 3, 3); got {tuple(got.shape)}")
    _left_as_it_was("lengths_B", lengths_B, torch.tensor([3, 1]))
    if bool(got.logical_not().equal(_joined(lengths_B, 3))):
        raise ExerciseFailed("True and False are exchanged: True means may attend")
    words = "rows of queries for a sequence of length"
    expect(f"{words} 3", got[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    expect(f"{words} 1, padded to 3", got[1, 0], [[1, 0, 0], [1, 0, 0], [1, 0, 0]])
    expect("lengths 2, 5, 4 of 5", solution(torch.tensor([2, 5, 4]), 5), _joined(torch.tensor([2, 5, 4]), 5))


def _joined(lengths_B, L):
    return _padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).tril()


def _left_as_it_was(name, after, before):
    if not torch.equal(after, before):
        raise ExerciseFailed(f"your function changed its argument {name}: make a new tensor instead")


def _attention(
    query, key, value, mask, *, scale=None, dim=-1, hide=-torch.inf, largest=True, after=False, sums=True
):
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if after else scores.masked_fill(~mask, hide)
    exponentials = (scores - scores.amax(dim, keepdim=True) if largest else scores).exp()
    weights = exponentials / exponentials.sum(dim, keepdim=True) if sums else exponentials
    return (weights * mask if after else weights) @ value


def _forgets_the_root(query, key, value, mask):
    return _attention(query, key, value, mask, scale=1.0)


def _divides_by_the_width(query, key, value, mask):
    return _attention(query, key, value, mask, scale=1 / query.shape[-1])


def _takes_the_root_of_the_keys(query, key, value, mask):
    return _attention(query, key, value, mask, scale=key.shape[-2] ** -0.5)


def _softmax_over_queries(query, key, value, mask):
    return _attention(query, key, value, mask, dim=-2).nan_to_num()


def _ignores_the_mask(query, key, value, mask):
    return _attention(query, key, value, torch.ones_like(mask))


def _turns_the_mask_round(query, key, value, mask):
    return _attention(query, key, value, ~mask).nan_to_num()


def _masks_after_the_softmax(query, key, value, mask):
    return _attention(query, key, value, mask, after=True)


def _hides_with_zero(query, key, value, mask):
    return _attention(query, key, value, mask, hide=0.0)


def _hides_with_minus_100(query, key, value, mask):
    return _attention(query, key, value, mask, hide=-100.0)


def _forgets_the_sum(query, key, value, mask):
    return _attention(query, key, value, mask, sums=False)


def _overflows_without_the_largest(query, key, value, mask):
    return _attention(query, key, value, mask, largest=False)


def _scales_the_query_in_place(query, key, value, mask):
    query /= query.shape[-1] ** 0.5
    return _attention(query, key, value, mask, scale=1.0)


def _edits_the_mask_in_place(query, key, value, mask):
    out = _attention(query, key, value, mask)
    mask.logical_not_()
    return out


def _loses_the_gradient(query, key, value, mask):
    return _attention(query, key, value, mask).detach()


def _loses_the_gradient_of_the_values(query, key, value, mask):
    return _attention(query, key, value.detach(), mask)


def _calls_torch(query, key, value, mask):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


READY_MADE = {"scaled_dot_product_attention", "attention_weights", "multi_head_attention", "tiled_attention"}


@check(
    "01-attention",
    wrong=[
        _forgets_the_root,
        _divides_by_the_width,
        _takes_the_root_of_the_keys,
        _softmax_over_queries,
        _ignores_the_mask,
        _turns_the_mask_round,
        _masks_after_the_softmax,
        _hides_with_zero,
        _hides_with_minus_100,
        _forgets_the_sum,
        _overflows_without_the_largest,
        _scales_the_query_in_place,
        _edits_the_mask_in_place,
        _loses_the_gradient,
        _loses_the_gradient_of_the_values,
        _calls_torch,
    ],
)
def attention_is_built(solution):
    names = getattr(getattr(solution, "__wrapped__", solution), "__code__", None)
    if names is not None and (called := READY_MADE & set(names.co_names)):
        raise ExerciseFailed(
            f"{called.pop()} is ready-made: write scores, mask, softmax and average yourself"
        )
    noise = generator(0, "check of attention")
    B, H, L, M, K = 2, 3, 5, 7, 11  # primes: an axis taken for another cannot pass

    def draw(*shape):
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    query, key, value = draw(B, H, L, K), draw(B, H, M, K), draw(B, H, M, K)
    mask = draw(L, M) > 0
    mask[:, 0] = True
    everything = torch.ones(L, M, dtype=torch.bool)
    before = [x.clone() for x in (query, key, value, mask)]
    got = _shaped(solution(query, key, value, everything), (B, H, L, K))
    for name, after, copy in zip(("query", "key", "value"), (query, key, value), before, strict=False):
        _left_as_it_was(name, after, copy)
    _left_as_it_was("mask", everything, torch.ones(L, M, dtype=torch.bool))
    _compare("without a forbidden pair", got, query, key, value, everything)
    _compare("with a mask (L, M)", solution(query, key, value, mask), query, key, value, mask)
    _left_as_it_was("mask", mask, before[3])
    padding = torch.ones(B, 1, 1, M, dtype=torch.bool)
    padding[1, ..., 4:] = False
    _compare(
        "with a padding mask (B, 1, 1, M)", solution(query, key, value, padding), query, key, value, padding
    )
    large = 1000 * query.float(), key.float(), value.float()
    got = solution(*large, mask)
    if not bool(torch.isfinite(got).all()):
        raise ExerciseFailed(
            "scores of some thousands give NaN: take the largest allowed score of each row off before exp"
        )
    _compare("scores of some thousands", got, *large, mask, rtol=1e-3)
    for place, name in enumerate(("query", "key", "value")):
        leaves = [query, key, value]
        leaves[place] = leaves[place].clone().requires_grad_()
        if not solution(*leaves, mask).requires_grad:
            raise ExerciseFailed(
                f"the result has no gradient by {name}: is there a detach(), item() or no_grad() on the way?"
            )


def _shaped(got, shape):
    if not isinstance(got, torch.Tensor):
        raise ExerciseFailed(f"return one tensor, the mixed values (B, H, L, K); got {type(got).__name__}")
    if got.shape != shape:
        raise ExerciseFailed(f"the result must be (B, H, L, K) = {shape}; got {tuple(got.shape)}")
    return got


def _compare(words, got, query, key, value, mask, rtol=1e-5):
    """Compare with attention; where one of the usual slips gives what came out, say which."""
    expected = scaled_dot_product_attention(query, key, value, mask=mask)[0]
    if torch.allclose(_shaped(got, expected.shape), expected, rtol=rtol, atol=1e-6):
        return
    slips = {
        "the scores are not divided by the root of the width K": _forgets_the_root,
        "the scores are divided by K, not by its root": _divides_by_the_width,
        "the root is that of the number of keys; it is the width K that counts": _takes_the_root_of_the_keys,
        "the softmax runs over the queries; it must run over the keys, the last axis": _softmax_over_queries,
        "the mask is not used": _ignores_the_mask,
        "the mask is turned round: True means may attend": _turns_the_mask_round,
        "the mask is put on after the softmax, so the weights no longer sum to 1": _masks_after_the_softmax,
        "a forbidden score is 0, which still has weight; it must be -inf": _hides_with_zero,
        "a forbidden score is -100, and others may be lower; it must be -inf": _hides_with_minus_100,
        "the weights of a row do not sum to 1: divide by their sum": _forgets_the_sum,
    }
    for slip, function in slips.items():
        if torch.allclose(got, function(query, key, value, mask), rtol=rtol, atol=1e-6):
            raise ExerciseFailed(f"{words}: {slip}")
    expect(words, got, expected, rtol=rtol, atol=1e-6)


RUNS = {
    "new seeds": ("fails", "fails"),
    "all rates": ("copies", "copies"),
    "query/key rate": ("fails", "copies"),
    "other rates": ("copies", "fails"),
    "entropy": ("fails", "fails"),
}
"""What the colleague, who blames the other weights, and we, who blame queries and keys, predict."""
DECIDING = {name: said for name, said in RUNS.items() if said[0] != said[1]}
ABOUT = {
    "all rates": "it cuts both supposed causes",
    "entropy": "it only looks, and changes nothing",
} | dict.fromkeys(DECIDING, "whose cause is taken away here?")


@check(
    "01-decide",
    wrong=[
        lambda: {name: DECIDING["other rates"] for name in ("other rates", "all rates")},
        lambda: {name: DECIDING["query/key rate"] for name in ("query/key rate", "entropy")},
        lambda: {name: DECIDING["query/key rate"] for name in DECIDING},  # one of the two the wrong way round
        lambda: {name: {"colleague": "copies", "we": "copies"} for name in DECIDING},
        lambda: DECIDING | {"new seeds": {"colleague": "fails", "we": "fails"}},
        lambda: {name: "we" for name in DECIDING},
    ],
)
def the_pair_decides(solution):
    expect_decision(solution(), stories=("colleague", "we"), runs=RUNS, because=ABOUT)


def _by_entropy(loss, floor, guessing, largest, entropy, cap):
    if loss < floor:
        return "leak"
    if entropy < 0.3:
        return "saturated"
    return "learns" if loss < 0.9 * guessing else "hidden" if largest > 10 * cap else "elsewhere"


def _by_score_first(loss, floor, guessing, largest, entropy, cap):
    if largest > 1000:
        return "hidden" if cap < math.inf else "saturated"
    return "leak" if loss < floor else "learns" if loss < 0.9 * guessing else "elsewhere"


def _forgets_the_leak(loss, floor, guessing, largest, entropy, cap):
    if loss < 0.9 * guessing:
        return "learns"
    return "hidden" if largest > 10 * cap else "saturated" if largest > 1000 else "elsewhere"


def _never_looks_before_the_cap(loss, floor, guessing, largest, entropy, cap):
    if loss < floor:
        return "leak"
    if loss < 0.9 * guessing:
        return "learns"
    return "saturated" if min(largest, cap) > 1000 else "elsewhere"


def _blames_attention_always(loss, floor, guessing, largest, entropy, cap):
    if loss < floor:
        return "leak"
    return "learns" if loss < 0.9 * guessing else "hidden" if cap < math.inf else "saturated"


def _hidden_at_the_cap(loss, floor, guessing, largest, entropy, cap):
    return _ruled(loss, floor, guessing, largest, hidden_above=cap, saturated_above=1000)


def _saturated_from_a_hundred(loss, floor, guessing, largest, entropy, cap):
    return _ruled(loss, floor, guessing, largest, hidden_above=10 * cap, saturated_above=100)


def _ruled(loss, floor, guessing, largest, *, hidden_above, saturated_above):
    if loss < floor:
        return "leak"
    if loss < 0.9 * guessing:
        return "learns"
    return "hidden" if largest > hidden_above else "saturated" if largest > saturated_above else "elsewhere"


CASES = (
    ("a masked copy that is solved, one-hot", (0.001, 0.0, 2.77, 110.0, 0.08, math.inf), "learns"),
    ("stuck with one-hot weights", (2.73, 0.0, 2.77, 51000.0, 0.0, math.inf), "saturated"),
    ("stuck behind a cap of 20, entropy 1.5", (2.67, 0.0, 2.77, 50000.0, 1.5, 20.0), "hidden"),
    ("a text model below its floor", (0.41, 0.54, 3.3, 15.0, 0.9, math.inf), "leak"),
    ("a text model below its floor, with scores in the thousands", (0.3, 0.54, 3.3, 4e3, 0.9, 20.0), "leak"),
    ("not learning, with small scores", (3.2, 0.54, 3.3, 6.0, 2.1, math.inf), "elsewhere"),
    ("not learning, under a cap that has no work", (3.2, 0.54, 3.3, 6.0, 2.1, 20.0), "elsewhere"),
    ("learning, with the gradient put back", (0.02, 0.0, 2.77, 1e5, 0.0, math.inf), "learns"),
    ("not learning, scores of 90 under a cap of 20", (2.7, 0.0, 2.77, 90.0, 1.4, 20.0), "elsewhere"),
    ("not learning, scores of 400 and no cap", (2.7, 0.0, 2.77, 400.0, 1.4, math.inf), "elsewhere"),
    ("not learning, scores of 300 under a cap of 20", (2.7, 0.0, 2.77, 300.0, 1.4, 20.0), "hidden"),
)  # fmt: skip


@check(
    "01-diagnose",
    wrong=[
        _by_entropy,
        _by_score_first,
        _forgets_the_leak,
        _never_looks_before_the_cap,
        _blames_attention_always,
        _hidden_at_the_cap,
        _saturated_from_a_hundred,
    ],
)
def the_log_is_read(solution):
    for words, numbers, expected in CASES:
        got = solution(*numbers)
        if got != expected:
            names = ("loss", "floor", "guessing", "largest", "entropy", "cap")
            given = ", ".join(f"{name} {number:g}" for name, number in zip(names, numbers, strict=True))
            raise ExerciseFailed(f"{words} ({given}): expected {expected!r}; got {got!r:.60}")


def _adds_without_rescaling(first, second):
    (m1, z1, a1), (m2, z2, a2) = first, second
    return max(m1, m2), z1 + z2, a1 + a2


def _forgets_the_values(first, second):
    (m1, z1, a1), (m2, z2, a2) = first, second
    m = max(m1, m2)
    return m, z1 * math.exp(m1 - m) + z2 * math.exp(m2 - m), a1 + a2


def _overflows(first, second):
    (m1, z1, a1), (m2, z2, a2) = first, second
    up_1, up_2 = torch.tensor(m1).exp(), torch.tensor(m2).exp()
    m = max(m1, m2)
    down = torch.tensor(-m).exp()
    return m, (z1 * up_1 + z2 * up_2) * down, (a1 * up_1 + a2 * up_2) * down


def _edits_the_values_in_place(first, second):
    (m1, z1, a1), (m2, z2, a2) = first, second
    m = max(m1, m2)
    f1, f2 = math.exp(m1 - m), math.exp(m2 - m)
    a1 *= f1
    a1 += f2 * a2
    return m, f1 * z1 + f2 * z2, a1


@check(
    "01-merge", wrong=[_adds_without_rescaling, _forgets_the_values, _overflows, _edits_the_values_in_place]
)
def merging_equals_one_softmax(solution):
    noise = generator(0, "check of merge")
    values_MK = torch.randn(5, 3, generator=noise, dtype=torch.float64)
    for words, shift in (("small scores", 0.0), ("scores near 1000, whose exp overflows", 1000.0)):
        # a merge that goes through exp(score) itself is right for small scores, and inf / inf for large ones
        scores_M = torch.randn(5, generator=noise, dtype=torch.float64) + shift

        def part(rows, scores_M=scores_M):  # bound now: the loop goes on to other scores
            largest = scores_M[rows].max().item()
            weights = (scores_M[rows] - largest).exp()
            return largest, weights.sum().item(), weights @ values_MK[rows]

        for low, high in ((slice(0, 2), slice(2, 5)), (slice(2, 5), slice(0, 2))):
            first, second = part(low), part(high)
            merged = solution(first, second)
            largest, total, weighted_K = things(merged, "largest score", "sum", "weighted values")
            _left_as_it_was("first", first[2], part(low)[2])
            _left_as_it_was("second", second[2], part(high)[2])
            expected_K = scores_M.softmax(0) @ values_MK
            expect(f"the largest score, {words}", largest, scores_M.max())
            expect(f"weighted values / sum, {words}", weighted_K / total, expected_K, rtol=1e-9)
            expect(f"the sum, {words}", total, (scores_M - scores_M.max()).exp().sum(), rtol=1e-9)
