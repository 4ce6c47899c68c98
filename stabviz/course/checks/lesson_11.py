"""Checks of lesson 11: failed runs counted, churn, and a step that nothing non-finite gets through."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect


def _majority(labels_N) -> float:
    return np.unique(labels_N, return_counts=True)[1].max() / len(labels_N)


def _marks_in_place(accuracy_R, loss_R, labels_N):
    accuracy_R[~np.isfinite(loss_R)] = 0.0
    return np.sum(accuracy_R <= _majority(labels_N))


@check(
    "11-failed-runs",
    wrong=[
        # equal to the majority counts as alive; one over the classes is asked for; infinity is forgotten
        lambda accuracy_R, loss_R, labels_N: np.sum(
            (accuracy_R < _majority(labels_N)) | ~np.isfinite(loss_R)
        ),
        lambda accuracy_R, loss_R, labels_N: np.sum((accuracy_R <= 1 / 3) | ~np.isfinite(loss_R)),
        lambda accuracy_R, loss_R, labels_N: np.sum((accuracy_R <= _majority(labels_N)) | np.isnan(loss_R)),
        # a run that is both counts twice; the share instead of the number; the caller's arrays are edited
        lambda accuracy_R, loss_R, labels_N: (
            np.sum(accuracy_R <= _majority(labels_N)) + np.sum(~np.isfinite(loss_R))
        ),
        lambda accuracy_R, loss_R, labels_N: np.mean(
            (accuracy_R <= _majority(labels_N)) | ~np.isfinite(loss_R)
        ),
        _marks_in_place,
    ],
)
def failed_runs_are_no_better_than_the_majority(solution):
    labels_N = np.array([0, 0, 0, 1, 2])
    for words, accuracies, losses, failed in (
        ("accuracies 0.9, 0.6, 0.4, 0.8 where the majority has 0.6", [0.9, 0.6, 0.4, 0.8], [1.0] * 4, 2),
        ("three good accuracies, but losses of nan, inf and 0.3", [0.8] * 3, [np.nan, np.inf, 0.3], 2),
        ("a run that is both bad and not finite counts once", [0.2, 0.8], [np.nan, 0.3], 1),
    ):
        accuracy_R, loss_R = np.array(accuracies), np.array(losses)
        expect(words, solution(accuracy_R, loss_R, labels_N), failed)
        if accuracy_R.tolist() != accuracies or not np.array_equal(loss_R, losses, equal_nan=True):
            raise ExerciseFailed("the accuracies or losses were edited in place: a caller still needs them")


@check(
    "11-churn",
    wrong=[
        lambda runs_RN: (runs_RN[:, None] != runs_RN[None]).mean(),  # counts a run with itself
        lambda runs_RN: (runs_RN[1:] != runs_RN[:1]).mean(),  # against the first run alone
        lambda runs_RN: (runs_RN != runs_RN[:1]).any(axis=0).mean(),  # inputs with any disagreement
        lambda runs_RN: (runs_RN[1:] != runs_RN[:-1]).mean(),  # neighbours alone
        lambda runs_RN: (runs_RN[:, None] == runs_RN[None]).mean(),  # agreement
    ],
)
def churn_is_averaged_over_pairs(solution):
    two_RN = np.array([[0, 1, 1, 0], [0, 1, 0, 0]])
    expect("two runs that differ on one of four messages", solution(two_RN), 0.25)
    three_RN = np.array([[0, 1, 2], [0, 1, 1], [0, 2, 1]])
    expect("three runs whose pairs differ on 1, 2 and 1 of three messages", solution(three_RN), 4 / 9)
    expect("three runs of which two are the same", solution(np.array([[1, 1], [1, 1], [0, 1]])), 1 / 3)


def _step(params_P, grad_P, lr, max_norm):
    return params_P - lr * grad_P * min(1.0, max_norm / max(grad_P.norm().item(), 1e-12))


def _clips_and_hopes(params_P, loss, grad_P, lr, max_norm):
    return _step(params_P, grad_P, lr, max_norm), True


def _only_nan(params_P, loss, grad_P, lr, max_norm):
    if torch.isnan(loss) or torch.isnan(grad_P).any():
        return params_P, False
    return _step(params_P, grad_P, lr, max_norm), True


def _only_the_loss(params_P, loss, grad_P, lr, max_norm):
    if not torch.isfinite(loss):
        return params_P, False
    return _step(params_P, grad_P, lr, max_norm), True


def _zeros_the_bad_entries(params_P, loss, grad_P, lr, max_norm):
    return _step(params_P, torch.nan_to_num(grad_P, 0.0, 0.0, 0.0), lr, max_norm), bool(torch.isfinite(loss))


def _edits_the_parameters(params_P, loss, grad_P, lr, max_norm):
    if not (torch.isfinite(loss) and torch.isfinite(grad_P).all()):
        return params_P, False
    params_P -= lr * grad_P * min(1.0, max_norm / max(grad_P.norm().item(), max_norm))
    return params_P, True


@check(
    "11-guarded-step",
    wrong=[_clips_and_hopes, _only_nan, _only_the_loss, _zeros_the_bad_entries, _edits_the_parameters],
)
def guarded_step_lets_nothing_through(solution):
    params_P, loss = torch.tensor([1.0, -2.0]), torch.tensor(0.7)
    given_P = params_P.clone()
    moved_P, took = solution(given_P, loss, torch.tensor([3.0, 4.0]), 0.1, 1.0)
    if not torch.equal(given_P, params_P):
        raise ExerciseFailed("params_P was edited in place: return new ones, params_P - lr * grad_P")
    expect("a gradient of norm 5, clipped to 1, at rate 0.1", moved_P, torch.tensor([0.94, -2.08]))
    expect("that the step was taken", bool(took), True)
    moved_P, _ = solution(params_P, loss, torch.tensor([0.3, 0.4]), 0.1, 1.0)
    expect("a gradient of norm 0.5, left as it is", moved_P, torch.tensor([0.97, -2.04]))
    moved_P, _ = solution(params_P, loss, torch.zeros(2), 0.1, 1.0)
    expect("a gradient of zero", moved_P, params_P)
    for name, bad_loss, grad_P in (
        ("a NaN loss", torch.tensor(torch.nan), torch.tensor([0.3, 0.4])),
        ("one NaN in the gradient", loss, torch.tensor([0.3, torch.nan])),
        ("one infinity in the gradient", loss, torch.tensor([torch.inf, 0.4])),
    ):
        moved_P, took = solution(params_P.clone(), bad_loss, grad_P, 0.1, 1.0)
        if not torch.equal(moved_P, params_P):
            change = f"from {params_P.tolist()} to {moved_P.tolist()}"
            raise ExerciseFailed(f"With {name} the parameters changed {change}.")
        expect(f"with {name}, that the step was not taken", bool(took), False)
