"""Checks of lesson 02: log-sum-exp, the gradient with ignored targets, the gap that smoothing asks for."""

import math

import torch

from stabviz.course.exercises import check, expect


@check(
    "02-log-sum-exp",
    wrong=[
        lambda scores: scores.exp().sum().log(),
        lambda scores: (scores - scores.max()).exp().sum().log(),
        lambda scores: scores.max(),
        lambda scores: scores.mean() + (scores - scores.mean()).exp().sum().log(),
    ],
)
def log_sum_exp_is_stable(solution):
    for words, values in (
        ("of [0, 0]: ln 2", [0.0, 0.0]),
        ("of [1000, 1000]: 1000 + ln 2", [1000.0, 1000.0]),
        ("of [-1000, -1000]", [-1000.0, -1000.0]),
        ("of [0, 1500, -1500]", [0.0, 1500.0, -1500.0]),
    ):
        scores = torch.tensor(values)
        expect(f"log-sum-exp {words}", solution(scores), torch.logsumexp(scores, 0))


def _sum_over_rows(logits_NV, targets_N):
    keep_N = targets_N != -100
    one_hot_NV = torch.nn.functional.one_hot(targets_N.clamp_min(0), logits_NV.shape[1])
    return (logits_NV.softmax(-1) - one_hot_NV) * keep_N[:, None]


def _divides_by_none(logits_NV, targets_N):
    return _sum_over_rows(logits_NV, targets_N) / (targets_N != -100).sum()


@check(
    "02-gradient",
    wrong=[
        _sum_over_rows,
        _divides_by_none,
        lambda logits_NV, targets_N: (
            _sum_over_rows(logits_NV, targets_N) / len(targets_N)
        ),  # ignored ones too
        lambda logits_NV, targets_N: -_divides_by_none(logits_NV, targets_N).nan_to_num(0.0),  # ascends
    ],
)
def gradient_is_sum_over_rows(solution):
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    for words, targets in (("five targets", [0, 2, 1, 1, 0]), ("two of five ignored", [0, -100, 1, -100, 2])):
        leaf, targets_N = logits_NV.clone().requires_grad_(), torch.tensor(targets)
        torch.nn.functional.cross_entropy(leaf, targets_N).backward()
        expect(f"the gradient, {words}", solution(logits_NV, targets_N), leaf.grad)
    ignored_N = torch.full((5,), -100)  # 0 targets: the mean over them must not become 0/0
    expect(
        "the gradient where every target is -100: zeros", solution(logits_NV, ignored_N), torch.zeros(5, 3)
    )


@check(
    "02-gap",
    wrong=[
        lambda epsilon, V: math.log((1 - epsilon) * V / epsilon),
        lambda epsilon, V: math.log((1 - epsilon) / epsilon),
        lambda epsilon, V: math.log((1 - epsilon) * (V - 1) / epsilon),
    ],
)
def gap_is_where_the_gradient_is_zero(solution):
    for epsilon, V in ((0.1, 4), (0.1, 70), (0.5, 2)):
        expected = math.log(1 + V * (1 - epsilon) / epsilon)
        expect(f"the gap at epsilon {epsilon} with {V} classes", solution(epsilon, V), expected)
