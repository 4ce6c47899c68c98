"""Checks of lesson 05: cosine with warm-up, LR sensitivity, the shortest safe warm-up."""

import math

import numpy as np

from stabviz.course.exercises import check, expect


def _first_update_zero(step, total_steps, warmup_steps, final_share):
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _climbs_again(step, total_steps, warmup_steps, final_share):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _progress_from_the_start(step, total_steps, warmup_steps, final_share):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, step / total_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _share_as_a_floor(step, total_steps, warmup_steps, final_share):
    return max(final_share, _climbs_again(min(step, total_steps), total_steps, warmup_steps, 0.0))


@check("05-cosine", wrong=[_first_update_zero, _climbs_again, _progress_from_the_start, _share_as_a_floor])
def cosine_has_the_right_landmarks(solution):
    expect("the first update of a warm-up of 4", solution(0, 24, 4, 0.0), 0.25)
    expect("its fourth update", solution(3, 24, 4, 0.0), 1.0)
    expect("the first update after it (4 taken)", solution(4, 24, 4, 0.0), 1.0)
    expect("half-way down, after 14 of 24", solution(14, 24, 4, 0.0), 0.5)
    expect("half-way down to a final share of 0.2", solution(14, 24, 4, 0.2), 0.6)
    expect("a quarter of the way down", solution(9, 24, 4, 0.0), 0.5 + math.sqrt(0.125))
    expect("the end", solution(24, 24, 4, 0.1), 0.1)
    expect("long after the end", solution(44, 24, 4, 0.1), 0.1)
    expect("the first update without warm-up", solution(0, 20, 0, 0.0), 1.0)


def _without_the_cap(final_losses, initial_loss):
    losses = np.asarray(final_losses, dtype=float)
    return float(np.mean(losses - np.nanmin(losses)))


def _skips_the_diverged(final_losses, initial_loss):
    losses = np.asarray(final_losses, dtype=float)
    losses = np.minimum(losses[np.isfinite(losses)], initial_loss)
    return float(np.mean(losses - losses.min()))


def _against_the_initial_loss(final_losses, initial_loss):
    losses = np.asarray(final_losses, dtype=float)
    capped = np.minimum(np.where(np.isfinite(losses), losses, initial_loss), initial_loss)
    return float(np.mean(initial_loss - capped))


@check("05-sensitivity", wrong=[_without_the_cap, _skips_the_diverged, _against_the_initial_loss])
def sensitivity_counts_the_diverged_as_the_start(solution):
    expect("for losses 3, 2, 2.5 from 4", solution([3.0, 2.0, 2.5], 4.0), 0.5)
    words = "for losses 3, 2, 9 from 4 (worse than the start counts as the start)"
    expect(words, solution([3.0, 2.0, 9.0], 4.0), 1.0)
    expect("for losses 3, 2, NaN from 4", solution([3.0, 2.0, math.nan], 4.0), 1.0)
    expect("for losses infinity, 2 from 4", solution([math.inf, 2.0], 4.0), 1.0)


def _by_the_mean(warmup_R, final_R, tolerance):
    warmup_R, final_R = np.asarray(warmup_R), np.asarray(final_R)
    mean = {int(w): final_R[warmup_R == w].mean() for w in np.unique(warmup_R)}
    return next(w for w, loss in mean.items() if loss <= min(mean.values()) + tolerance)


def _the_best(warmup_R, final_R, tolerance):
    warmup_R, final_R = np.asarray(warmup_R), np.asarray(final_R)
    return int(min(np.unique(warmup_R), key=lambda w: final_R[warmup_R == w].mean()))


def _any_seed(warmup_R, final_R, tolerance):
    warmup_R, final_R = np.asarray(warmup_R), np.asarray(final_R)
    best = min(final_R[warmup_R == w].mean() for w in np.unique(warmup_R))
    return int(warmup_R[final_R <= best + tolerance].min())


@check("05-safe-warmup", wrong=[_by_the_mean, _the_best, _any_seed])
def safe_warmup_asks_the_worst_seed(solution):
    warmup_R = np.array([40, 40, 0, 0, 20, 20, 10, 10, 5, 5])  # in no order
    final_R = np.array([2.0, 2.1, 3.9, math.inf, 2.2, 2.1, 2.1, 2.5, 2.2, 3.8])
    for tolerance, expected, why in (
        (0.2, 20, " (5 and 10 have one bad seed each)"),
        (0.3, 20, " (the mean of 10 is good enough, its worst seed is not)"),
        (0.5, 10, ""),
        (0.06, 40, ""),
    ):
        expect(f"with a tolerance of {tolerance}{why}", solution(warmup_R, final_R, tolerance), expected)
