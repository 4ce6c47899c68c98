"""Checks of lesson 04: clipping by the global norm, before or after, steps that are skipped and counted."""

import math

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, things


def _norm(grads):
    return torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))


def _each_tensor_by_itself(grads, max_norm):
    scales = [min(1.0, max_norm / max(grad.norm().item(), 1e-12)) for grad in grads]
    return [grad * scale for grad, scale in zip(grads, scales, strict=True)], _norm(grads)


def _always_to_the_threshold(grads, max_norm):
    return [grad * max_norm / _norm(grads).clamp(min=1e-12) for grad in grads], _norm(grads)


def _norm_after(grads, max_norm):
    clipped = [grad * (max_norm / _norm(grads).clamp(min=max_norm)) for grad in grads]
    return clipped, _norm(clipped)


def _by_value(grads, max_norm):
    return [grad.clamp(-max_norm, max_norm) for grad in grads], _norm(grads)


def _zero_over_zero(grads, max_norm):
    return [grad / _norm(grads) * _norm(grads).clamp(max=max_norm) for grad in grads], _norm(grads)


@check(
    "04-clip",
    wrong=[_each_tensor_by_itself, _always_to_the_threshold, _norm_after, _by_value, _zero_over_zero],
)
def clip_scales_all_tensors_by_one_number(solution):
    long = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [-4.0], [12.0]])]
    kept = [grad.clone() for grad in long]
    cases = [
        ("norm 13, threshold 6.5", long, 6.5, 0.5, 13.0),
        ("norm 13, threshold 20: nothing to clip", long, 20.0, 1.0, 13.0),
        ("a gradient that is all zero", [torch.zeros(2), torch.zeros(3, 1)], 1.0, 1.0, 0.0),
    ]
    for what, grads, max_norm, scale, norm in cases:
        answer = solution(grads, max_norm)
        clipped, norm_before = things(answer, "the list of clipped gradients", "the norm before clipping")
        if not isinstance(clipped, tuple | list) or len(clipped) != len(grads):
            raise ExerciseFailed(f"{what}: expected a list of {len(grads)} gradients first")
        for index, (got, grad) in enumerate(zip(clipped, grads, strict=True)):
            expect(f"{what}: gradient {index}", got, grad * scale)
        expect(f"{what}: the norm BEFORE clipping", norm_before, norm)
    if not all(torch.equal(grad, before) for grad, before in zip(long, kept, strict=True)):
        raise ExerciseFailed("the gradients that were handed in have changed: make new tensors instead")


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


@check("04-before-or-after", wrong=[_only_looks_at_the_top, _trusts_nan, _asks_for_equality])
def before_or_after_reads_the_top_of_the_log(solution):
    nan = math.nan
    cases = [
        ("norms that pass the threshold", [0.4, 3.1, 0.9, 12.0, 0.7], "before"),
        # torch divides by norm + 1e-6, so that a clipped norm ends a hair below the threshold
        ("norms that stop a hair below the threshold", [0.4, 0.999999, 0.9, 0.9999998, 0.999999], "after"),
        ("norms that never come near the threshold", [0.4, 0.31, 0.52, 0.44, 0.4], "cannot tell"),
        ("norms that pass the threshold, with one NaN", [0.4, nan, 0.9, 250.0, 0.7], "before"),
        ("norms that stop at the threshold, with one NaN", [0.4, nan, 0.999999, 0.9999998, 0.7], "after"),
    ]
    for what, norms, expected in cases:
        got = solution(torch.tensor(norms, dtype=torch.float64).numpy(), 1.0)
        if got != expected:
            raise ExerciseFailed(f"{what}, clip_norm 1: expected {expected!r}; got {got!r:.80}")


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


@check("04-skip", wrong=[_clips_and_hopes, _looks_for_nan_only, _patches_the_numbers, _skips_long_ones_too])
def only_non_finite_steps_are_skipped(solution):
    rows = [[3.0, 4.0], [math.nan, 0.3], [0.1, -0.2], [math.inf, 0.3], [-600.0, 800.0]]
    grads = [torch.tensor(row) for row in rows]
    expected = torch.tensor([1.0, 1.0])
    for index in (0, 2, 4):
        expected = _step(expected, grads[index], 0.5, 1.0)
    answer = solution(torch.tensor([1.0, 1.0]), grads, 0.5, 1.0)
    param, skipped = things(answer, "the parameter", "how many steps were skipped")
    expect("steps skipped among [long, NaN, short, inf, very long]", skipped, 2)
    expect("the parameter after them (a long gradient is clipped, not skipped)", param, expected)
