"""Checks of lesson 06: in-batch InfoNCE, uniformity, the collapse in a trace."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect
from stabviz.trace import Trace


def _unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def _not_normalised(x, y, temperature):
    scores = x @ y.T / temperature
    return (torch.logsumexp(scores, dim=-1) - scores.diagonal()).mean()


def _positive_left_out(x, y, temperature):
    scores = _unit(x) @ _unit(y).T / temperature
    negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return (torch.logsumexp(negatives, dim=-1) - scores.diagonal()).mean()


@check(
    "06-in-batch",
    wrong=[
        _not_normalised,
        _positive_left_out,
        lambda x, y, temperature: _not_normalised(_unit(x), _unit(y), 1 / temperature),  # times, not divided
        lambda x, y, temperature: _not_normalised(_unit(y), _unit(x), temperature),  # x found from y
        lambda x, y, temperature: _not_normalised(_unit(x), _unit(y), temperature) * len(x),  # a sum
    ],
)
def in_batch_is_a_cross_entropy_on_cosines(solution):
    eye = torch.eye(3)
    expect("three perpendicular pairs at temperature 1: ln(e + 2) - 1", solution(eye, eye, 1.0), 0.551445)
    expect("the same three, with x twice as long", solution(2 * eye, eye, 1.0), 0.551445)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(_unit(x) @ _unit(y).T / 0.2, torch.arange(7))
    expect("seven random pairs at temperature 0.2, y to be found from x", solution(x, y, 0.2), expected)


@check(
    "06-uniformity",
    wrong=[
        lambda z: torch.exp(-2 * torch.cdist(z, z).square()).mean().log(),  # each point with itself too
        lambda z: torch.exp(-2 * torch.pdist(z)).mean().log(),  # the distance is not squared
        lambda z: (-2 * torch.pdist(z).square()).mean(),  # the mean of the log
        lambda z: torch.exp(-2 * torch.pdist(z).square()).mean(),  # no log
    ],
)
def uniformity_is_a_log_mean_over_pairs(solution):
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    expect("three equal points", solution(same), 0.0, atol=1e-6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    expect("two opposite points: distance 2, so -2 x 4", solution(opposite), -8.0)
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = np.log((2 * np.exp(-4.0) + np.exp(-8.0)) / 3)
    expect("points at 0, 90 and 180 degrees: ln((2 e^-4 + e^-8) / 3)", solution(three), expected)


@check(
    "06-collapsed",
    wrong=[
        lambda trace: trace["embedding_std"][:, -10:].mean(axis=1) < 0.1,
        lambda trace: trace["uniformity"].mean(axis=1) > -1.5,
        lambda trace: trace["uniformity"].max(axis=1) > -1.5,
        lambda trace: trace["uniformity"][:, -1] > -1.5,
        lambda trace: trace["uniformity"][:, -10:].mean() > -1.5,
        lambda trace: trace["loss_nats"][:, -10:].mean(axis=1) < 0.01,
    ],
)
def collapsed_reads_the_end_of_uniformity(solution):
    expected = {
        "healthy": False,
        "collapsed": True,
        "half-way: two clouds": True,
        "collapsed and recovered": False,
        "healthy, one odd last step": False,
    }
    uniformity_RS = np.full((5, 60), -3.2)
    uniformity_RS[1] = np.linspace(-3.2, -0.001, 60) * (np.arange(60) < 50) - 0.001
    uniformity_RS[2, 15:] = -0.9
    uniformity_RS[3, 5:50] = -0.01
    uniformity_RS[4, -1] = -0.5
    std_RS = np.full((5, 60), 0.245)
    std_RS[1, 50:], std_RS[2], std_RS[3, 5:50] = 0.004, 0.21, 0.01
    loss_RS = np.full((5, 60), 1.5)
    loss_RS[1], loss_RS[2] = 0.001, 0.2
    trace = Trace(
        steps=range(60),
        runs=[{"seed": seed} for seed in range(5)],
        signals={"loss_nats": loss_RS, "uniformity": uniformity_RS, "embedding_std": std_RS},
    )
    answer = np.asarray(solution(trace))
    if answer.shape != (5,):
        raise ExerciseFailed(f"one answer for each of the 5 runs is expected; got shape {answer.shape}")
    for (kind, collapsed), got in zip(expected.items(), answer, strict=True):
        if bool(got) != collapsed:
            raise ExerciseFailed(f"a run that is {kind}: expected {collapsed}; got {bool(got)}")
