"""Checks of lesson 04: clipping by norm, runs that decide, before or after, steps skipped and counted."""

import math

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision, things


def _each_entry_by_itself(grad_P, max_norm):
    return grad_P.clamp(-max_norm, max_norm), grad_P.norm()


def _always_to_the_threshold(grad_P, max_norm):
    return grad_P * max_norm / grad_P.norm().clamp(min=1e-12), grad_P.norm()


def _norm_after(grad_P, max_norm):
    clipped_P = grad_P * (max_norm / grad_P.norm().clamp(min=max_norm))
    return clipped_P, clipped_P.norm()


def _zero_over_zero(grad_P, max_norm):
    return grad_P / grad_P.norm() * grad_P.norm().clamp(max=max_norm), grad_P.norm()


def _in_place(grad_P, max_norm):
    norm = grad_P.norm()
    grad_P *= max_norm / norm.clamp(min=max_norm)
    return grad_P, norm


def _mean_square(grad_P, max_norm):
    norm = grad_P.square().mean().sqrt()
    return grad_P * (max_norm / norm.clamp(min=max_norm)), norm


def _no_root(grad_P, max_norm):
    norm = grad_P.square().sum()
    return grad_P * (max_norm / norm.clamp(min=max_norm)), norm


def _cut_off(grad_P, max_norm):
    return torch.zeros_like(grad_P) if grad_P.norm() > max_norm else grad_P, grad_P.norm()


MISTAKES = (
    (
        _each_entry_by_itself,
        "each entry was cut by itself: that is clipping by value, and turns the direction",
    ),
    (_always_to_the_threshold, "the gradient was brought to the threshold though it is shorter"),
    (_mean_square, "the norm is the root of the SUM of the squares, not of their mean"),
    (_no_root, "the root is missing: the norm is the root of the sum of the squares"),
    (_cut_off, "the gradient was dropped: scale it"),
    (_zero_over_zero, "0/0: divide by the larger of norm and threshold"),
)
"""What gives such a value, and what is wrong with it."""


def _expect_clipped(what, clipped_P, norm, grad_P, max_norm, scale):
    try:
        expect(f"{what}: the clipped gradient", clipped_P, grad_P * scale)
    except ExerciseFailed as failed:
        got = [np.asarray(torch.as_tensor(x)) for x in (clipped_P, norm)]
        for mistake, words in MISTAKES:
            theirs = [x.numpy() for x in mistake(grad_P.clone(), max_norm)]
            pairs = zip(got, theirs, strict=True)
            if all(x.shape == y.shape and np.allclose(x, y, equal_nan=True) for x, y in pairs):
                raise ExerciseFailed(f"{failed}. So {words}") from None
        raise


@check(
    "04-clip",
    wrong=[
        _each_entry_by_itself,
        _always_to_the_threshold,
        _norm_after,
        _zero_over_zero,
        _in_place,
        _mean_square,
        _no_root,
        _cut_off,
    ],
)
def clip_scales_the_whole_gradient_by_one_number(solution):
    long = [3.0, 0.0, -4.0, 12.0]
    cases = [
        ("norm 13, threshold 6.5", long, 6.5, 0.5, 13.0),
        ("norm 13, threshold 20: nothing to clip", long, 20.0, 1.0, 13.0),
        ("norm 13, threshold 13: nothing to clip", long, 13.0, 1.0, 13.0),
        ("norm 0.5, threshold 0.25", [0.3, -0.4], 0.25, 0.5, 0.5),
        ("a gradient that is all zero", [0.0, 0.0], 1.0, 1.0, 0.0),
    ]
    for what, numbers, max_norm, scale, norm in cases:
        grad_P = torch.tensor(numbers)
        answer = solution(grad_P, torch.tensor(max_norm))
        # Before any value is judged: an edit in place would make a right value look wrong, and hide itself.
        if not torch.equal(grad_P, torch.tensor(numbers)):
            message = "the gradient that was handed in has changed: make a new tensor (x * s, not x *= s)"
            raise ExerciseFailed(f"{what}: {message}")
        clipped_P, norm_before = things(answer, "the clipped gradient", "the norm before clipping")
        _expect_clipped(what, clipped_P, norm_before, torch.tensor(numbers), torch.tensor(max_norm), scale)
        expect(f"{what}: the norm BEFORE clipping", norm_before, norm)


STORIES = {
    "A": ("lives", "jumps"),
    "B": ("lives", "lives"),
    "C": ("lives", "jumps"),
    "D": ("jumps", "jumps"),
    "E": ("jumps", "jumps"),
}
"""Run -> what her story (the average rate) and ours (the longest step) predict."""
ABOUT = {
    "A": "its average rate is 27, and no bound stands on its steps",
    "B": "its average rate is about 30, and no step is longer than 6",
    "C": "its average rate is about 21, and no bound stands on its steps",
    "D": "its average rate is about 38, and its steps may be 40 long",
    "E": "its average rate is 40, and no bound stands on its steps",
}


def _the_remedy_once_more():
    return {"A": ("lives", "jumps"), "B": ("lives", "lives")}


def _both_stories_agree():
    return {"D": ("jumps", "jumps"), "E": ("jumps", "jumps")}


def _columns_swapped():
    return {"A": ("jumps", "lives"), "C": ("jumps", "lives")}


def _what_happened_for_both():
    return {"A": ("jumps", "jumps"), "C": ("jumps", "jumps")}


def _runs_alone():
    return ["A", "C"]


def _all_of_them():
    return dict(STORIES)


@check(
    "04-decide",
    wrong=[
        _the_remedy_once_more,
        _both_stories_agree,
        _columns_swapped,
        _what_happened_for_both,
        _runs_alone,
        _all_of_them,
    ],
)
def two_runs_on_which_the_stories_differ(solution):
    expect_decision(solution(), stories=("her story", "our story"), runs=STORIES, because=ABOUT)


def _only_looks_at_the_top(norm_S, clip_norm):
    return "before" if norm_S.max() > clip_norm else "after"


def _trusts_nan(norm_S, clip_norm):
    if norm_S.max() > 1.01 * clip_norm:
        return "before"
    return "after" if norm_S.max() > 0.99 * clip_norm else "cannot tell"


def _asks_for_equality(norm_S, clip_norm):
    finite_S = norm_S[norm_S == norm_S]
    if finite_S.max() > clip_norm:
        return "before"
    return "after" if (finite_S == clip_norm).sum() > 1 else "cannot tell"


def _calls_more_than_half_near(norm_S, clip_norm):
    top = norm_S[np.isfinite(norm_S)].max()
    return "before" if top > 1.01 * clip_norm else "after" if top > 0.6 * clip_norm else "cannot tell"


def _knows_thresholds_of_one_only(norm_S, clip_norm):
    top = norm_S[np.isfinite(norm_S)].max()
    return "before" if top > 1.001 else "after" if top > 0.999 else "cannot tell"


def _allows_a_hundredth(norm_S, clip_norm):
    top = norm_S[np.isfinite(norm_S)].max()
    return "before" if top > clip_norm + 0.01 else "after" if top > clip_norm - 0.01 else "cannot tell"


def _empties_the_log(norm_S, clip_norm):
    norm_S[~np.isfinite(norm_S)] = 0
    top = norm_S.max()
    return "before" if top > 1.001 * clip_norm else "after" if top > 0.999 * clip_norm else "cannot tell"


@check(
    "04-before-or-after",
    wrong=[
        _only_looks_at_the_top,
        _trusts_nan,
        _asks_for_equality,
        _calls_more_than_half_near,
        _knows_thresholds_of_one_only,
        _allows_a_hundredth,
        _empties_the_log,
    ],
)
def before_or_after_reads_the_top_of_the_log(solution):
    nan = math.nan
    cases = [
        ("norms that pass the threshold", [0.4, 3.1, 0.9, 12.0, 0.7], "before"),
        # torch divides by norm + 1e-6, so that a clipped norm ends a hair below the threshold
        ("norms that stop a hair below the threshold", [0.4, 0.999999, 0.9, 0.9999998, 0.999999], "after"),
        ("norms that stop at the threshold", [0.4, 1.0, 0.9, 1.0, 1.0], "after"),
        ("norms of 0.52 and less, far below the threshold", [0.4, 0.31, 0.52, 0.44, 0.4], "cannot tell"),
        ("norms of 0.7 and less: no step was clipped", [0.4, 0.7, 0.61, 0.55, 0.4], "cannot tell"),
        ("norms of 0.93 and less: no step was clipped", [0.4, 0.93, 0.61, 0.9, 0.4], "cannot tell"),
        ("norms that pass the threshold, with one NaN", [0.4, nan, 0.9, 250.0, 0.7], "before"),
        ("norms that stop at the threshold, with one NaN", [0.4, nan, 0.999999, 0.9999998, 0.7], "after"),
    ]
    for clip_norm in (1.0, 0.15, 0.01):
        for what, norms, expected in cases:
            norm_S = clip_norm * np.array(norms)
            handed_in = norm_S.copy()
            got = solution(norm_S, clip_norm)
            if not np.array_equal(norm_S, handed_in, equal_nan=True):
                raise ExerciseFailed(f"{what}: the log that was handed in has changed: look, and leave it")
            if got != expected:
                words = f"in units of the threshold, which is {clip_norm:g}"
                raise ExerciseFailed(f"{what} ({words}): expected {expected!r}; got {got!r:.80}")


def _step(param, grad, lr, max_norm):
    return param - lr * grad * (max_norm / grad.norm().clamp(min=max_norm))


def _clips_and_hopes(param, grads, lr, max_norm):
    for grad in grads:
        param = _step(param, grad, lr, max_norm)
    return param, 0


def _looks_for_nan_only(param, grads, lr, max_norm):
    skipped = 0
    for grad in grads:
        if grad.isnan().any():
            skipped += 1
        else:
            param = _step(param, grad, lr, max_norm)
    return param, skipped


def _patches_the_numbers(param, grads, lr, max_norm):
    for grad in grads:
        param = _step(param, grad.nan_to_num(0.0, 0.0, 0.0), lr, max_norm)
    return param, sum(not grad.isfinite().all() for grad in grads)


def _skips_long_ones_too(param, grads, lr, max_norm):
    skipped = 0
    for grad in grads:
        if not grad.norm() <= max_norm:
            skipped += 1
        else:
            param = param - lr * grad
    return param, skipped


def _edits_the_parameter(param, grads, lr, max_norm):
    skipped = 0
    for grad in grads:
        if grad.isfinite().all():
            param -= lr * grad * (max_norm / grad.norm().clamp(min=max_norm))
        else:
            skipped += 1
    return param, skipped


def _stops_at_the_first(param, grads, lr, max_norm):
    for grad in grads:
        if not grad.isfinite().all():
            return param, 1
        param = _step(param, grad, lr, max_norm)
    return param, 0


@check(
    "04-skip",
    wrong=[
        _clips_and_hopes,
        _looks_for_nan_only,
        _patches_the_numbers,
        _skips_long_ones_too,
        _edits_the_parameter,
        _stops_at_the_first,
    ],
)
def only_non_finite_steps_are_skipped(solution):
    rows = [[3.0, 4.0], [math.nan, 0.3], [0.1, -0.2], [math.inf, 0.3], [-600.0, 800.0]]
    grads, start = [torch.tensor(row) for row in rows], torch.tensor([1.0, 1.0])
    expected = start.clone()
    for index in (0, 2, 4):
        expected = _step(expected, grads[index], 0.5, 1.0)
    # A tensor, as in 04-clip: the learner may call the clip that was built there.
    answer = solution(start, grads, 0.5, torch.tensor(1.0))
    same = [
        torch.equal(g.nan_to_num(7.0), torch.tensor(row).nan_to_num(7.0))
        for g, row in zip(grads, rows, strict=True)
    ]
    if not torch.equal(start, torch.ones(2)) or not all(same):
        raise ExerciseFailed("what was handed in has changed: write param = param - step, not param -= step")
    param, skipped = things(answer, "the parameter", "how many steps were skipped")
    expect("steps skipped among [long, NaN, short, inf, very long]", skipped, 2)
    expect("the parameter after them (a long gradient is clipped, not skipped)", param, expected)
