"""Checks of lesson 10: the next loss scale, micro-batch losses that add up, the order of a scaled step."""

import math

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, things


def _right_scale(scale, good_steps, finite, interval):
    if not finite:
        return scale / 2, 0
    return (scale * 2, 0) if good_steps + 1 >= interval else (scale, good_steps + 1)


def _keeps_counting_after_an_overflow(scale, good_steps, finite, interval):
    if not finite:
        return scale / 2, good_steps
    return _right_scale(scale, good_steps, finite, interval)


def _doubles_one_step_late(scale, good_steps, finite, interval):
    if finite and good_steps < interval:
        return scale, good_steps + 1
    return _right_scale(scale, good_steps, finite, interval)


def _never_starts_again(scale, good_steps, finite, interval):
    if finite and good_steps + 1 >= interval:
        return scale * 2, good_steps + 1
    return _right_scale(scale, good_steps, finite, interval)


def _never_grows(scale, good_steps, finite, interval):
    return (scale, good_steps + 1) if finite else (scale / 2, 0)


@check(
    "10-next-scale",
    wrong=[_keeps_counting_after_an_overflow, _doubles_one_step_late, _never_starts_again, _never_grows],
)
def scale_halves_at_once_and_doubles_after_a_stretch(solution):
    scale, good_steps, expected, count = 1024.0, 0, 1024.0, 0
    for step, finite in enumerate(map(bool, (0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0))):
        met = "finite" if finite else "overflow"
        before = f"step {step}, {met}, scale {scale:g}, {good_steps} good steps, interval 3"
        expected, count = _right_scale(expected, count, finite, 3)
        answer = solution(scale, good_steps, finite, 3)
        scale, good_steps = things(answer, "the scale", "the number of good steps in a row")
        expect(f"{before}: the new scale", scale, expected)
        expect(f"{before}: the new count", good_steps, count)


def _mean_of_means_without_the_empty(losses, keeps):
    full = [(loss, keep) for loss, keep in zip(losses, keeps, strict=True) if keep.any()]
    return [loss[keep].mean() / len(full) for loss, keep in full]


def _kept_sums(losses, keeps):
    return [loss[keep].sum() for loss, keep in zip(losses, keeps, strict=True)]


@check(
    "10-micro-losses",
    wrong=[
        _mean_of_means_without_the_empty,
        _kept_sums,
        # the mean of means, 0/0 without a target; ignored places counted; ignored places added
        lambda losses, keeps: [x[keep].mean() / len(losses) for x, keep in zip(losses, keeps, strict=True)],
        lambda losses, keeps: [x / sum(map(torch.numel, keeps)) for x in _kept_sums(losses, keeps)],
        lambda losses, keeps: [loss.sum() / sum(keep.sum() for keep in keeps) for loss in losses],
    ],
)
def micro_losses_add_up_to_the_token_mean(solution):
    cases = [
        ("micro-batches of 1 and 3 targets", [[9.0, 7.0, 7.0], [1.0, 1.0, 1.0]], [[1, 0, 0], [1, 1, 1]]),
        (
            "micro-batches of 2, 0 and 5 targets",
            [[2.0, 4.0, 8.0, 1.0, 3.0], [5.0, 6.0, 7.0, 8.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]],
            [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
        ),
    ]
    for what, values, kept in cases:
        weight = torch.ones((), requires_grad=True)
        losses = [weight * torch.tensor(value) for value in values]
        keeps = [torch.tensor(keep, dtype=torch.bool) for keep in kept]
        answer = solution(losses, keeps)
        if not isinstance(answer, tuple | list) or not all(
            isinstance(each, torch.Tensor) and each.ndim == 0 for each in answer
        ):
            raise ExerciseFailed("return a list of scalar tensors, one for each micro-batch")
        mean = (torch.tensor(values) * torch.tensor(kept)).sum() / torch.tensor(kept).sum()
        expect(f"{what}: the sum of the losses, which is the token mean", sum(answer), mean)
        for each in answer:
            each.backward()
        expect(f"{what}: the gradient after backward() on each", weight.grad, mean)


def _norm(grads):
    return torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))


def _clipped(grads, max_norm):
    return [grad * (max_norm / _norm(grads).clamp(min=max_norm)) for grad in grads]


def _clips_first(scaled_grads, scale, max_norm):
    norm, clipped = _norm(scaled_grads), _clipped(scaled_grads, max_norm)
    return ([grad / scale for grad in clipped] if norm.isfinite() else None), norm / scale


def _never_skips(scaled_grads, scale, max_norm):
    grads = [grad / scale for grad in scaled_grads]
    return _clipped(grads, max_norm), _norm(grads)


def _forgets_to_unscale(scaled_grads, scale, max_norm):
    clipped, norm = _never_skips(scaled_grads, 1.0, max_norm)
    return (clipped if norm.isfinite() else None), norm


def _looks_for_nan_only(scaled_grads, scale, max_norm):
    clipped, norm = _never_skips(scaled_grads, scale, max_norm)
    return (None if norm.isnan() else clipped), norm


def _norm_after(scaled_grads, scale, max_norm):
    clipped, norm = _never_skips(scaled_grads, scale, max_norm)
    return (clipped if norm.isfinite() else None), _norm(clipped)


@check(
    "10-scaled-step",
    wrong=[_clips_first, _forgets_to_unscale, _never_skips, _looks_for_nan_only, _norm_after],
)
def step_is_unscaled_then_checked_then_clipped(solution):
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [-4.0], [12.0]])]
    returned = ("the gradients (or None)", "the norm before clipping")
    for what, max_norm, share in (
        ("true norm 13, threshold 6.5", 6.5, 0.5),
        ("true norm 13, threshold 20", 20.0, 1.0),
    ):
        for scale in (1024.0, 65536.0):
            answer = solution([grad * scale for grad in grads], scale, max_norm)
            got, norm = things(answer, *returned)
            expect(f"{what}, scale {scale:g}: the norm before clipping", norm, 13.0)
            if not isinstance(got, tuple | list) or len(got) != 2:
                raise ExerciseFailed(f"{what}: expected a list of 2 gradients first; got {got!r:.80}")
            for index, (one, grad) in enumerate(zip(got, grads, strict=True)):
                expect(f"{what}, scale {scale:g}: gradient {index}", one, grad * share)
    for bad in (math.nan, math.inf):
        answer = solution([grads[0] * 1024, torch.tensor([[0.0], [bad], [1.0]])], 1024.0, 1.0)
        got, norm = things(answer, *returned)
        if got is not None:
            raise ExerciseFailed(f"a gradient with {bad}: expected None, for a step to skip; got {got!r:.80}")
        if math.isfinite(norm := float(norm)):
            raise ExerciseFailed(f"a gradient with {bad}: expected the norm, which is not finite; got {norm}")
