"""Checks of lesson 05: the runs that decide, a cosine, the shortest safe warm-up, a log of the rate."""

import math

import numpy as np

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision

LOGITS, BRANCH = "query and key rate x 0.03", "value and output rate x 0.1"
RUNS = {
    LOGITS: ("mended", "broken"),
    BRANCH: ("broken", "mended"),
    "clip at 0.01": ("broken", "broken"),
    "rate 0.03": ("mended", "mended"),
    "warm-up of 10 steps": ("mended", "mended"),
}
"""What the stories of the logits and of the branch predict of each run."""


def _predictions_swapped():
    return {
        LOGITS: {"logits": "broken", "branch": "mended"},
        BRANCH: {"logits": "mended", "branch": "broken"},
    }


def _a_run_for_which_both_say_the_same():
    return {
        LOGITS: {"logits": "mended", "branch": "broken"},
        "rate 0.03": {"logits": "mended", "branch": "mended"},
    }


def _one_story_alone():
    return {LOGITS: {"logits": "mended"}, BRANCH: {"branch": "mended"}}


def _hedged():
    return {name: {"logits": "mended", "branch": "mended"} for name in (LOGITS, BRANCH)}


def _all_five():
    return dict(RUNS)


@check(
    "05-decide",
    wrong=[_predictions_swapped, _a_run_for_which_both_say_the_same, _one_story_alone, _hedged, _all_five],
)
def the_two_runs_on_which_the_stories_differ(solution):
    expect_decision(solution(), stories=("logits", "branch"), runs=RUNS, because={})


def _first_update_zero(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _climbs_again(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def _progress_from_the_start(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))


def _falls_in_a_line(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1 - min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def _a_whole_cosine(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(2 * math.pi * progress))


def _divides_by_the_warm_up(step, total_steps, warmup_steps):
    rise = min(1.0, (step + 1) / warmup_steps)  # stops at a warm-up of 0
    progress = min(1.0, max(0, step - warmup_steps) / (total_steps - warmup_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * progress))


@check(
    "05-cosine",
    wrong=[
        _first_update_zero,
        _climbs_again,
        _progress_from_the_start,
        _falls_in_a_line,
        _a_whole_cosine,
        _divides_by_the_warm_up,
    ],
)
def cosine_has_the_right_landmarks(solution):
    for what, step, total_steps, warmup_steps, expected in (
        ("the first update of a warm-up of 4 (0 taken: 1/4)", 0, 24, 4, 0.25),
        ("its fourth update", 3, 24, 4, 1.0),
        ("the first update after it (4 taken)", 4, 24, 4, 1.0),
        ("half-way down, after 14 of 24", 14, 24, 4, 0.5),
        ("a quarter of the way down", 9, 24, 4, 0.5 + math.sqrt(0.125)),
        ("the end", 24, 24, 4, 0.0),
        ("long after the end, where it stays at 0", 44, 24, 4, 0.0),
        ("the first update without warm-up", 0, 20, 0, 1.0),
        ("half-way down without warm-up", 10, 20, 0, 0.5),
    ):
        expect(what, solution(step, total_steps, warmup_steps), expected)


def _unchanged(name, array, before):
    if not np.array_equal(array, before):
        raise ExerciseFailed(f"your function edits {name} in place; work on a copy: np.sort(x), not x.sort()")


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


def _above_the_best_worst_seed(warmup_R, final_R, tolerance):
    worst = {int(w): final_R[warmup_R == w].max() for w in np.unique(warmup_R)}
    return next(w for w, loss in worst.items() if loss <= min(worst.values()) + tolerance)


def _above_the_lowest_median(warmup_R, final_R, tolerance):
    best = min(np.median(final_R[warmup_R == w]) for w in np.unique(warmup_R))
    return next(int(w) for w in np.unique(warmup_R) if final_R[warmup_R == w].max() <= best + tolerance)


def _above_the_longest(warmup_R, final_R, tolerance):
    best = final_R[warmup_R == warmup_R.max()].mean()
    return next(int(w) for w in np.unique(warmup_R) if final_R[warmup_R == w].max() <= best + tolerance)


def _above_the_best_seed_of_all(warmup_R, final_R, tolerance):
    worst = {int(w): final_R[warmup_R == w].max() for w in np.unique(warmup_R)}
    return next(w for w, loss in worst.items() if loss <= final_R.min() + tolerance)


def _edits_in_place(warmup_R, final_R, tolerance):
    order = np.argsort(warmup_R, kind="stable")
    warmup_R[:], final_R[:] = warmup_R[order], final_R[order]
    best = min(final_R[warmup_R == w].mean() for w in np.unique(warmup_R))
    return next(int(w) for w in np.unique(warmup_R) if final_R[warmup_R == w].max() <= best + tolerance)


@check(
    "05-safe-warmup",
    wrong=[
        _by_the_mean,
        _the_best,
        _any_seed,
        _above_the_best_worst_seed,
        _above_the_best_seed_of_all,
        _above_the_lowest_median,
        _above_the_longest,
        _edits_in_place,
    ],
)
def safe_warmup_asks_the_worst_seed(solution):
    warmup_R = np.array([40, 40, 0, 0, 20, 20, 10, 10, 5, 5])  # in no order
    final_R = np.array([2.0, 2.1, 3.9, math.inf, 2.2, 2.1, 2.1, 2.5, 2.2, 3.8])
    two_seeds = warmup_R, final_R
    # Three seeds: the mean of 8 is 2.2, its median 2.0; the longest warm-up has the mean 2.3.
    three_seeds = np.array([16, 16, 16, 8, 8, 8, 0]), np.array([2.3, 2.3, 2.3, 2.0, 2.6, 2.0, math.inf])
    # The means are 2.05 (40), 2.15 (20), 2.3 (10); the lowest worst seed is 2.1, the lowest seed 2.0.
    for (warmup_R, final_R), tolerance, expected, why in (
        (two_seeds, 0.2, 20, " (5 and 10 have one bad seed each)"),
        (two_seeds, 0.3, 20, " (the mean of 10 is good enough, its worst seed is not)"),
        (two_seeds, 0.5, 10, ""),
        (two_seeds, 0.06, 40, ""),
        (two_seeds, 0.12, 40, " (measured from the lowest MEAN, 2.05, not from the lowest worst seed, 2.1)"),
        (two_seeds, 0.47, 10, " (measured from the lowest MEAN, 2.05, not from the lowest seed, 2.0)"),
        (three_seeds, 0.45, 8, " (three seeds: measured from the lowest MEAN, 2.2, not from a median)"),
        (three_seeds, 0.35, 16, " (measured from the lowest mean of ANY warm-up, not of the longest)"),
    ):
        warmups, finals = warmup_R.copy(), final_R.copy()
        got = solution(warmups, finals, tolerance)
        _unchanged("warmup_R", warmups, warmup_R)
        _unchanged("final_R", finals, final_R)
        expect(f"with a tolerance of {tolerance}{why}", got, expected)


FAULTS = ("no warm-up", "too slow", "climbs again", "right")


def _wants_a_zero_at_the_end(share_S, warmup_steps, total_steps):
    if share_S[0] > 0.999:
        return "no warm-up"
    if share_S[warmup_steps - 1] < 0.999:
        return "too slow"
    return "right" if share_S[-1] < 0.1 else "climbs again"


def _any_peak_will_do(share_S, warmup_steps, total_steps):
    if share_S[0] > 0.999:
        return "no warm-up"
    if share_S.max() < 0.999:
        return "too slow"
    return "climbs again" if (np.diff(share_S[share_S.argmax() :]) > 1e-6).any() else "right"


def _one_update_late(share_S, warmup_steps, total_steps):
    if share_S[0] > 0.999:
        return "no warm-up"
    if share_S[warmup_steps] < 0.999:
        return "too slow"
    return "climbs again" if (np.diff(share_S[warmup_steps:]) > 1e-6).any() else "right"


def _only_a_fall_is_right(share_S, warmup_steps, total_steps):
    if share_S[0] > 0.999:
        return "no warm-up"
    if share_S[warmup_steps - 1] < 0.999:
        return "too slow"
    return "right" if (np.diff(share_S[warmup_steps:]) < 0).all() else "climbs again"


def _last_step_alone(share_S, warmup_steps, total_steps):
    if share_S[0] > 0.999:
        return "no warm-up"
    if share_S[warmup_steps - 1] < 0.999:
        return "too slow"
    return "climbs again" if share_S[-1] > share_S[-2] else "right"


def _scales_in_place(share_S, warmup_steps, total_steps):
    share_S /= share_S.max()
    return _any_peak_will_do(share_S, warmup_steps, total_steps)


@check(
    "05-rate-log",
    wrong=[
        _wants_a_zero_at_the_end,
        _any_peak_will_do,
        _one_update_late,
        _only_a_fall_is_right,
        _last_step_alone,
        _scales_in_place,
    ],
)
def the_fault_is_read_off_the_rate(solution):
    step_S, W, T = np.arange(60), 8, 60
    rise_S, p_S = np.minimum((step_S + 1) / W, 1), np.clip((step_S - W) / (T - W), 0, 1)
    short_S = np.maximum(step_S - W, 0) / (26 - W)
    cosine_S = rise_S * (1 + np.cos(np.pi * p_S)) / 2
    for what, share_S, expected in (
        ("a cosine", cosine_S, "right"),
        ("an inverse root, which does not end at 0", np.minimum(rise_S, np.sqrt(W / (step_S + 1))), "right"),
        ("a warm-up and then a constant rate", rise_S, "right"),
        ("a schedule that moves once in 12 steps", rise_S[step_S // 12], "too slow"),
        ("a warm-up twice as long as planned", np.minimum((step_S + 1) / (2 * W), 1), "too slow"),
        ("a warm-up that divides s, not s + 1", np.minimum(step_S / W, 1), "too slow"),
        ("a warm-up that peaks at half the rate", cosine_S / 2, "too slow"),
        ("a cosine without warm-up", (1 + np.cos(np.pi * step_S / T)) / 2, "no warm-up"),
        ("a cosine planned for 26 steps", rise_S * (1 + np.cos(np.pi * short_S)) / 2, "climbs again"),
    ):
        given_S = share_S.copy()
        got = solution(given_S, W, T)
        _unchanged("share_S", given_S, share_S)
        if got not in FAULTS:
            raise ExerciseFailed(f"{what}: return one of {FAULTS}; got {got!r:.60}")
        if got != expected:
            raise ExerciseFailed(f"{what}: expected {expected!r}; got {got!r}")
