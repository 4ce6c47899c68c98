"""Checks of lesson 01: one mask from two, merging two parts of a softmax, entropy of a row."""

import math

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, things


def _padding_only(lengths_B, L):
    return (torch.arange(L) < lengths_B[:, None])[:, None, None, :].expand(-1, 1, L, L)


def _masks_the_queries(lengths_B, L):
    real = torch.arange(L) < lengths_B[:, None]
    return real[:, None, :, None] & torch.ones(L, L, dtype=torch.bool).tril()


def _true_means_masked(lengths_B, L):
    return ~(_padding_only(lengths_B, L) & torch.ones(L, L, dtype=torch.bool).tril())


@check("01-masks", wrong=[_padding_only, _masks_the_queries, _true_means_masked])
def masks_are_joined(solution):
    got = solution(torch.tensor([3, 1]), 3)
    if not isinstance(got, torch.Tensor) or got.dtype != torch.bool:
        raise ExerciseFailed(f"the mask must be a tensor of bool, True = may attend; got {got!r:.100}")
    if got.ndim != 4 or got.shape[0] != 2 or got.shape[-2:] != (3, 3):
        raise ExerciseFailed(f"the mask must have shape (B, 1, L, L) = (2, 1, 3, 3); got {tuple(got.shape)}")
    words = "rows of queries for a sequence of length"
    expect(f"{words} 3", got[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    expect(f"{words} 1, padded to 3", got[1, 0], [[1, 0, 0], [1, 0, 0], [1, 0, 0]])


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


@check("01-merge", wrong=[_adds_without_rescaling, _forgets_the_values, _overflows])
def merging_equals_one_softmax(solution):
    generator = torch.Generator().manual_seed(0)
    values_MK = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    for words, shift in (("small scores", 0.0), ("scores near 1000, whose exp overflows", 1000.0)):
        # a merge that goes through exp(score) itself is right for small scores, and inf / inf for large ones
        scores_M = torch.randn(5, generator=generator, dtype=torch.float64) + shift

        def part(rows, scores_M=scores_M):  # bound now: the loop goes on to other scores
            largest = scores_M[rows].max().item()
            weights = (scores_M[rows] - largest).exp()
            return largest, weights.sum().item(), weights @ values_MK[rows]

        for low, high in ((slice(0, 2), slice(2, 5)), (slice(2, 5), slice(0, 2))):
            merged = solution(part(low), part(high))
            largest, total, weighted_K = things(merged, "largest score", "sum", "weighted values")
            expected_K = scores_M.softmax(0) @ values_MK
            expect(f"the largest score, {words}", largest, scores_M.max())
            expect(f"weighted values / sum, {words}", weighted_K / total, expected_K, rtol=1e-9)
            expect(f"the sum, {words}", total, (scores_M - scores_M.max()).exp().sum(), rtol=1e-9)


@check(
    "01-entropy",
    wrong=[
        lambda weights: -(weights * weights.log()).sum(dim=-1),
        lambda weights: (weights * weights.clamp_min(1e-30).log()).sum(dim=-1),
        lambda weights: -(weights * weights.clamp_min(1e-30).log2()).sum(dim=-1),
        lambda weights: -(weights * weights.clamp_min(1e-30).log()).mean(dim=-1),
    ],
)
def entropy_counts_a_zero_as_nothing(solution):
    expect("four equal weights: ln 4 nats", solution(torch.full((1, 4), 0.25)), [math.log(4)])
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    expect("one key has all; two keys share", solution(rows), [0.0, math.log(2)], atol=1e-6)
