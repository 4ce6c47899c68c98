"""Checks of lesson 00: a verdict, a learning rate that every seed survives, churn."""

import numpy as np

from stabviz.course.exercises import ExerciseFailed, check, expect
from stabviz.trace import Trace

CHANCE, FLOOR = 4.0, 1.0


def _only_asks_for_nan(loss_S, chance, floor):
    if np.isnan(loss_S[-1]):
        return "diverged"
    way, final = chance - floor, np.mean(loss_S[-max(1, len(loss_S) // 10) :])
    return "stalled" if chance - final < 0.05 * way else "healthy"


def _takes_the_last_step_alone(loss_S, chance, floor):
    way = chance - floor
    if not np.isfinite(loss_S[-1]) or loss_S[-1] > chance + 0.1 * way:
        return "diverged"
    return "stalled" if chance - loss_S[-1] < 0.05 * way else "healthy"


def _forgets_the_floor(loss_S, chance, floor):
    if not np.isfinite(loss_S[-1]):
        return "diverged"
    final = np.mean(loss_S[-max(1, len(loss_S) // 10) :])
    if final > 1.1 * chance:
        return "diverged"
    return "stalled" if final > 0.95 * chance else "healthy"


@check("00-verdict", wrong=[_only_asks_for_nan, _takes_the_last_step_alone, _forgets_the_floor])
def verdict_follows_the_rules(solution):
    falling_S = np.linspace(4.2, 2.0, 200)
    cases = {
        "a loss that falls from 4.2 to 2": (falling_S, "healthy"),
        "a loss that ends in NaN": (np.append(falling_S, np.nan), "diverged"),
        "a loss that ends in infinity": (np.append(falling_S, np.inf), "diverged"),
        "a loss that stays at 3.97": (np.full(200, 3.97), "stalled"),
        "a loss that has come down to 3.82": (np.full(200, 3.82), "healthy"),
        "a loss that stays at 4.35": (np.full(200, 4.35), "diverged"),
        "a loss of 2 whose very last step is 5": (np.append(np.full(200, 2.0), 5.0), "healthy"),
    }
    for words, (loss_S, wanted) in cases.items():
        got = solution(loss_S, CHANCE, FLOOR)
        if got != wanted:
            given = f"with chance {CHANCE:g} and floor {FLOOR:g}"
            raise ExerciseFailed(f"{words}, {given}, should be {wanted!r}; got {got!r}")


def _by_the_mean(trace, margin):
    rates = np.unique(trace.labels("lr"))
    mean = np.array([trace.final()[trace.labels("lr") == rate].mean() for rate in rates])
    return rates[mean <= mean.min() + margin][0]


def _the_lowest(trace, margin):
    rates = np.unique(trace.labels("lr"))
    return rates[np.argmin([trace.final()[trace.labels("lr") == rate].max() for rate in rates])]


def _the_luckiest_run(trace, margin):
    return trace.labels("lr")[np.argmin(trace.final())]


def _sweep(finals):
    """A Trace whose runs end at the given losses, {rate: one per seed}; inf is a run that diverged."""
    runs = [{"lr": rate, "seed": seed} for rate, ends in finals.items() for seed in range(len(ends))]
    ends_R = np.array([end for ends in finals.values() for end in ends])
    loss_RS = np.stack([np.full(len(ends_R), 4.0), ends_R], axis=1)
    return Trace(steps=[0, 1], signals={"loss_nats": loss_RS}, runs=runs)


@check("00-safe-rate", wrong=[_by_the_mean, _the_lowest, _the_luckiest_run])
def safe_rate_survives_the_worst_seed(solution):
    sweep = _sweep(
        {0.1: [2.0, np.inf], 0.03: [2.5, 2.52], 0.01: [2.55, 2.56], 0.003: [2.3, 2.75], 0.001: [3.0, 3.1]}
    )
    expect("with a margin of 0.1", solution(sweep, 0.1), 0.01)
    expect("with a margin of 0.01", solution(sweep, 0.01), 0.03)
    expect("with a margin of 0.3", solution(sweep, 0.3), 0.003)


def _difference_of_accuracies(first_N, second_N, targets_N):
    counts_N = targets_N != -100
    return abs((first_N == targets_N)[counts_N].mean() - (second_N == targets_N)[counts_N].mean())


@check(
    "00-churn",
    wrong=[
        _difference_of_accuracies,
        lambda first_N, second_N, targets_N: (first_N != second_N).mean(),
        lambda first_N, second_N, targets_N: ((first_N != second_N) & (targets_N != -100)).mean(),
        lambda first_N, second_N, targets_N: (first_N != second_N)[targets_N != -100].sum(),
    ],
)
def churn_counts_disagreements(solution):
    targets_N = np.array([1, 2, 3, 4, -100, -100, -100])
    first_N = np.array([1, 2, 0, 0, 5, 6, 7])
    second_N = np.array([0, 2, 3, 9, 5, 9, 9])
    words = "two of the four places differ by being right, one by being wrong in another way"
    expect(words, solution(first_N, second_N, targets_N), 0.75)
    expect("of two models that say the same", solution(first_N, first_N, targets_N), 0.0)
