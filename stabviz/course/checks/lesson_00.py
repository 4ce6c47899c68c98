"""Checks of lesson 00: a first optimizer, two runs that decide, a verdict, churn."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision

CHANCE, FLOOR = 4.0, 1.0


def _edits_what_it_was_given(param_P, grad_P, lr):
    param_P -= lr * grad_P
    return param_P


@check(
    "00-descend",
    wrong=[
        _edits_what_it_was_given,
        lambda param_P, grad_P, lr: param_P + lr * grad_P,
        lambda param_P, grad_P, lr: param_P - grad_P,
        lambda param_P, grad_P, lr: lr * grad_P,
        lambda param_P, grad_P, lr: param_P - lr * grad_P.sign(),
        lambda param_P, grad_P, lr: (param_P - lr * grad_P).sum(),
    ],
)
def descend_goes_against_the_gradient(solution):
    param_P, grad_P = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, -4.0, 0.0])
    kept_P = param_P.clone()
    stepped = solution(param_P, grad_P, 0.1)
    if not torch.equal(param_P, kept_P):
        raise ExerciseFailed("the parameters that were handed in have changed: return a new vector instead")
    expect("parameters (1, -2, 0.5), gradient (0.5, -4, 0), rate 0.1", stepped, [0.95, -1.6, 0.5], rtol=1e-4)


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


def _does_not_look_at_the_start(loss_S, chance, floor):
    way, final = chance - floor, np.mean(loss_S[-max(1, len(loss_S) // 10) :])
    if not np.isfinite(loss_S[-1]) or final > chance + 0.1 * way:
        return "diverged"
    return "stalled" if chance - final < 0.05 * way else "healthy"


def _calls_any_high_value_a_spike(loss_S, chance, floor):
    kind = _does_not_look_at_the_start(loss_S, chance, floor)
    return "spiked" if kind == "healthy" and np.max(loss_S) > chance else kind


def _asks_for_the_spike_first(loss_S, chance, floor):
    if np.max(loss_S[:20]) > 2 * chance - floor:
        return "spiked"
    return _does_not_look_at_the_start(loss_S, chance, floor)


@check(
    "00-verdict",
    wrong=[
        _only_asks_for_nan,
        _takes_the_last_step_alone,
        _forgets_the_floor,
        _does_not_look_at_the_start,
        _calls_any_high_value_a_spike,
        _asks_for_the_spike_first,
    ],
)
def verdict_follows_the_rules(solution):
    falling_S = np.linspace(4.2, 2.0, 200)
    cases = {
        "a loss that falls from 4.2 to 2": (falling_S, "healthy"),
        "a loss that ends in NaN": (np.append(falling_S, np.nan), "diverged"),
        "a loss that ends in infinity": (np.append(falling_S, np.inf), "diverged"),
        "a loss that stays at 3.97": (np.full(200, 3.97), "stalled"),
        "a loss that has come down to 3.82": (np.full(200, 3.82), "healthy"),
        "a loss that stays at 4.35": (np.full(200, 4.35), "diverged"),
        "a loss that leaves to 171 in its first steps": (np.append([4.2, 60.0, 171.0], falling_S), "spiked"),
        "a loss that leaves to 171 and then stays at 4.35": (
            np.append([4.2, 171.0], np.full(200, 4.35)),
            "diverged",
        ),
        "a loss that scatters up to 4.4 at its start": (np.append([4.2, 4.4, 4.3], falling_S), "healthy"),
        "a loss of 2 whose very last step is 5": (np.append(np.full(200, 2.0), 5.0), "healthy"),
    }
    for words, (loss_S, wanted) in cases.items():
        got = solution(loss_S, CHANCE, FLOOR)
        if got != wanted:
            given = f"with chance {CHANCE:g} and floor {FLOOR:g}"
            raise ExerciseFailed(f"{words}, {given}, should be {wanted!r}; got {got!r}")


RUNS = {
    "rate 0.01": ("healthy", "healthy"),
    "first 8 steps long": ("ruined", "ruined"),
    "last 20 steps long": ("healthy", "ruined"),
    "warm-up of 40": ("healthy", "ruined"),
    "rate 1 again, other seeds": ("ruined", "ruined"),
}
"""What A and B predict of each run."""
DECIDING = {name: said for name, said in RUNS.items() if said[0] != said[1]}
ABOUT = {
    "rate 0.01": "it has no long step at all",
    "rate 1 again, other seeds": "it tells how sure the finding is",
} | dict.fromkeys(DECIDING, "what does A, who fears the first steps alone, say of it? And B?")


def _picks_what_both_predict():
    return {"rate 0.01": ("healthy", "healthy"), "first 8 steps long": ("ruined", "ruined")}


def _one_decides_and_one_does_not():
    return {"last 20 steps long": ("healthy", "ruined"), "first 8 steps long": ("ruined", "healthy")}


def _mixes_up_the_two():
    return {name: ends[::-1] for name, ends in DECIDING.items()}


def _takes_all_that_is_offered():
    return {name: ("healthy", "ruined") for name in RUNS}


def _says_only_how_they_ended():
    return dict.fromkeys(DECIDING, "ruined")


@check(
    "00-decide",
    wrong=[
        _picks_what_both_predict,
        _one_decides_and_one_does_not,
        _mixes_up_the_two,
        _takes_all_that_is_offered,
        _says_only_how_they_ended,
    ],
)
def runs_decide_where_the_predictions_differ(solution):
    expect_decision(solution(), stories=("A", "B"), runs=RUNS, because=ABOUT)


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
