"""Checks of lesson 03: the largest safe rate, Adam's step, two stories told apart, a sick optimizer."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision, things


def _hessian_in_place(hessian, beta1):
    hessian /= 2 * (1 + beta1)
    return 1 / torch.linalg.eigvalsh(hessian)[-1]


@check(
    "03-largest-rate",
    wrong=[
        lambda hessian, beta1: 2 * (1 + beta1) / torch.linalg.eigvalsh(hessian)[0],
        lambda hessian, beta1: (1 + beta1) / torch.linalg.eigvalsh(hessian)[-1],
        lambda hessian, beta1: 2 * (1 + beta1) / hessian.diagonal().max(),
        lambda hessian, beta1: 2 / torch.linalg.eigvalsh(hessian)[-1],
        lambda hessian, beta1: 2 * (1 - beta1) / torch.linalg.eigvalsh(hessian)[-1],
        lambda hessian, beta1: 2 * (1 + beta1) / hessian.abs().sum(dim=1).max(),
        _hessian_in_place,
    ],
)
def largest_rate_is_two_over_the_sharpness(solution):
    on_axes = torch.diag(torch.tensor([1.0, 50.0]))
    turned = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    uneven = torch.tensor([[2.0, 2.0], [2.0, 5.0]])  # its largest sum of a row, 7, is no eigenvalue
    for what, hessian, beta1, expected in (
        ("plain descent with curvatures 1 and 50 on the axes", on_axes, 0.0, 0.04),
        ("plain descent with [[3, 1], [1, 3]], whose eigenvalues are 2 and 4", turned, 0.0, 0.5),
        ("plain descent with [[2, 2], [2, 5]], whose eigenvalues are 1 and 6", uneven, 0.0, 1 / 3),
        ("momentum 0.9 with curvatures 1 and 50", on_axes, 0.9, 2 * 1.9 / 50),
    ):
        given = hessian.clone()
        got = solution(given, beta1)
        if not torch.equal(given, hessian):
            raise ExerciseFailed("the Hessian was edited in place: write x / 2, not x /= 2")
        expect(what, got, expected)


def _adam(param, grad, m, v, t, lr, beta1, beta2, eps, *, correct=True, inside=False, square=True, sign=1.0):
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * (grad**2 if square else grad)
    m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if correct else (m, v)
    root = (v_hat + eps) ** 0.5 if inside else v_hat**0.5 + eps
    return param - sign * lr * m_hat / root, m, v


def _without_correction(*arguments):
    return _adam(*arguments, correct=False)


def _epsilon_inside_the_root(*arguments):
    return _adam(*arguments, inside=True)


def _up_the_gradient(*arguments):
    return _adam(*arguments, sign=-1.0)


def _returns_the_corrected_moments(param, grad, m, v, t, lr, beta1, beta2, eps):
    param, m, v = _adam(param, grad, m, v, t, lr, beta1, beta2, eps)
    return param, m / (1 - beta1**t), v / (1 - beta2**t)


def _counts_from_zero(param, grad, m, v, t, *rest):
    return _adam(param, grad, m, v, t + 1, *rest)


def _in_place(param, grad, m, v, t, lr, beta1, beta2, eps):
    m.mul_(beta1).add_((1 - beta1) * grad)
    v.mul_(beta2).add_((1 - beta2) * grad**2)
    return param - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps), m, v


def _root_forgotten(param, grad, m, v, t, lr, beta1, beta2, eps):
    _, m, v = _adam(param, grad, m, v, t, lr, beta1, beta2, eps)
    return param - lr * (m / (1 - beta1**t)) / (v / (1 - beta2**t) + eps), m, v


def _epsilon_of_the_short_form(param, grad, m, v, t, lr, beta1, beta2, eps):
    _, m, v = _adam(param, grad, m, v, t, lr, beta1, beta2, eps)
    rate = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    return param - rate * m / (v**0.5 + eps), m, v


_MISTAKES = [
    (_epsilon_of_the_short_form, "is epsilon beside the uncorrected root? It belongs beside sqrt(v_hat)"),
    (_epsilon_inside_the_root, "is epsilon inside the root? Adam divides by sqrt(v_hat) + eps"),
    (_without_correction, "is the bias correction missing? Divide m by 1 - beta1**t, v by 1 - beta2**t"),
    (_root_forgotten, "is the root of v_hat missing?"),
    (_up_the_gradient, "does it step up the gradient? Subtract lr times the direction"),
    (_counts_from_zero, "is t counted once too often? It is 1 at the first step"),
]


@check(
    "03-adam-step", wrong=[mistake for mistake, _ in _MISTAKES] + [_returns_the_corrected_moments, _in_place]
)
def adam_step_equals_torch(solution):
    knobs = (0.1, 0.8, 0.9, 0.01)
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9), eps=0.01)
    param, m, v = start, torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, 4):
        grad = torch.tensor([0.3, -1.0, 0.02], dtype=torch.float64) * t
        theirs.grad = grad.clone()
        reference.step()
        given, kept = (param, grad, m, v), [x.clone() for x in (param, grad, m, v)]
        new = things(solution(*given, t, *knobs), "param", "m", "v")
        for name, before, after in zip(("param", "grad", "m", "v"), kept, given, strict=True):
            if not torch.equal(before, after):
                raise ExerciseFailed(f"{name} was edited in place: write {name} = ..., not {name} *= ...")
        for mistake, words in _MISTAKES:
            made = mistake(*kept, t, *knobs)[0]
            right = _adam(*kept, t, *knobs)[0]
            looks_so = isinstance(new[0], torch.Tensor) and new[0].shape == made.shape
            if looks_so and torch.allclose(new[0], made, rtol=1e-9) and not torch.allclose(made, right):
                raise ExerciseFailed(f"at step {t}: {words}")
        expect(f"the parameter after step {t}", new[0], theirs.detach(), rtol=1e-9)
        held = _adam(*kept, t, *knobs)
        # Corrected moments, kept, would be corrected again at the next step.
        expect(f"m after step {t}, without the correction", new[1], held[1], rtol=1e-9)
        expect(f"v after step {t}, without the correction", new[2], held[2], rtol=1e-9)
        param, m, v = new


_STORIES = {
    "no momentum": ("lives", "lives"),
    "one scale": ("lives", "thrown"),
    "momentum": ("thrown", "thrown"),
    "frozen scales": ("thrown", "lives"),
    "smaller epsilon": ("lives", "lives"),
}
"""Run -> what the bounded-step story and the own-scales story predict."""


@check(
    "03-decide",
    wrong=[
        lambda: {"one scale": ("thrown", "lives"), "frozen scales": ("lives", "thrown")},
        lambda: {"one scale": ("lives", "thrown"), "momentum": ("thrown", "thrown")},
        lambda: {"no momentum": ("lives", "lives"), "smaller epsilon": ("lives", "lives")},
        lambda: {"one scale": ("lives", "thrown")},
        lambda: {"one scale": ("lives", "thrown"), "frozen scales": ("thrown", "thrown")},
        lambda: dict(_STORIES),
        lambda: ["one scale", "frozen scales"],
    ],
)
def two_runs_tell_the_stories_apart(solution):
    expect_decision(solution(), stories=("bounded step", "own scales"), runs=_STORIES, because={})


def _starved_by_all_steps(update_rms_S):
    words = "uncorrected" if update_rms_S[0] > 2 else "healthy"
    return "starved" if np.nanmean(update_rms_S) < 0.05 else words


def _ignores_what_is_missing(update_rms_S):
    words = "uncorrected" if update_rms_S[0] > 2 else "healthy"
    return "starved" if update_rms_S[20:].mean() < 0.05 else words


def _any_first_step_is_long(update_rms_S):
    words = "uncorrected" if update_rms_S[0] > 0.5 else "healthy"
    return "starved" if np.nanmean(update_rms_S[20:]) < 0.05 else words


def _longest_step(update_rms_S):
    words = "uncorrected" if np.nanmax(update_rms_S) > 2 else "healthy"
    return "starved" if np.nanmean(update_rms_S[20:]) < 0.05 else words


def _shortest_step(update_rms_S):
    words = "uncorrected" if update_rms_S[0] > 2 else "healthy"
    return "starved" if np.nanmin(update_rms_S[20:]) < 0.05 else words


def _median_of_the_later(update_rms_S):
    words = "uncorrected" if update_rms_S[0] > 2 else "healthy"
    return "starved" if np.nanmedian(update_rms_S[20:]) < 0.05 else words


def _fills_in_place(update_rms_S):
    update_rms_S[np.isnan(update_rms_S)] = np.nanmean(update_rms_S[20:])
    words = "uncorrected" if update_rms_S[0] > 2 else "healthy"
    return "starved" if update_rms_S[20:].mean() < 0.05 else words


@check(
    "03-diagnose",
    wrong=[
        _starved_by_all_steps,
        _ignores_what_is_missing,
        _any_first_step_is_long,
        _longest_step,
        _shortest_step,
        _median_of_the_later,
        _fills_in_place,
        lambda update_rms_S: "healthy",
    ],
)
def diagnose_reads_the_first_and_the_later_steps(solution):
    fall_S = 0.15 + 0.85 * np.exp(-np.arange(60) / 8)
    runs = {
        "a healthy run, whose first update is 1 rate long": ("healthy", fall_S),
        "a run whose first update is 3.1 rates long": ("uncorrected", 3.1 * fall_S),
        "a healthy run with one long update at step 40": (
            "healthy",
            np.where(np.arange(60) == 40, 4.0, fall_S),
        ),
        "a starved run with long first steps": ("starved", np.where(np.arange(60) < 20, 0.9, 0.01)),
        "a starved run that was frozen at step 40": ("starved", np.where(np.arange(60) < 40, 0.004, np.nan)),
    }
    runs["a healthy run with one update of 0.001 at step 50"] = (
        "healthy",
        np.where(np.arange(60) == 50, 0.001, fall_S),
    )
    runs["a run with one long update in five, whose later MEAN is 0.09"] = (
        "healthy",
        np.where(np.arange(60) % 5 == 0, 0.4, 0.01),
    )
    for what, (right, update_rms_S) in runs.items():
        given_S = update_rms_S.copy()
        answer = solution(given_S)
        if not np.array_equal(given_S, update_rms_S, equal_nan=True):
            raise ExerciseFailed("your function edits update_rms_S in place; work on a copy")
        if answer != right:
            raise ExerciseFailed(f"{what}: expected {right!r}; got {answer!r}")
