"""Checks of lesson 10: the accumulation loop, two runs that decide, a log."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision, things


def _mean_of_means(parts):
    full = [part for part in parts if part[2]]
    return sum(x / n for x, _, n in full) / len(full), sum(g / n for _, g, n in full) / len(full)


def _divides_by_micro_batches(parts):
    parts = list(parts)
    return sum(x for x, _, _ in parts) / len(parts), sum(g for _, g, _ in parts) / len(parts)


def _forgets_to_divide_the_gradient(parts):
    parts = list(parts)
    count = sum(n for _, _, n in parts)
    return sum(x for x, _, _ in parts) / count, sum(g for _, g, _ in parts)


def _takes_the_last_micro_batch(parts):
    loss, grad, tokens = next(part for part in reversed(list(parts)) if part[2])
    return loss / tokens, grad / tokens


def _leaves_out_the_first(parts):
    return _right_accumulation(list(parts)[1:])


def _adds_into_the_first_gradient(parts):
    parts = list(parts)
    grad = parts[0][1]
    for _, more, _ in parts[1:]:
        grad += more
    count = sum(n for _, _, n in parts)
    return sum(x for x, _, _ in parts) / count, grad / count


def _right_accumulation(parts):
    count = sum(n for _, _, n in parts)
    return sum(x for x, _, _ in parts) / count, sum(g for _, g, _ in parts) / count


class MicroBatches:
    """The triples of a batch, handed out once: on a real run a gradient is gone when the next one comes."""

    def __init__(self, parts):
        self._left, self._over = iter(parts), False

    def __iter__(self):
        if self._over:
            raise TypeError("parts can be walked through once: add up all three in one loop")
        return self

    def __next__(self):
        try:
            return next(self._left)
        except StopIteration:
            self._over = True
            raise


@check(
    "10-accumulate",
    wrong=[
        _mean_of_means,
        _divides_by_micro_batches,
        _forgets_to_divide_the_gradient,
        _takes_the_last_micro_batch,
        _leaves_out_the_first,
        _adds_into_the_first_gradient,
        _right_accumulation,  # walks three times, with all gradients in memory
    ],
)
def accumulation_gives_every_token_the_same_weight(solution):
    def part(loss, grad, tokens):
        return loss, torch.tensor(grad), tokens

    cases = {
        "micro-batches of 1 and 3 tokens": [part(9.0, [3.0, 0.0], 1), part(3.0, [-1.0, 2.0], 3)],
        "micro-batches of 2, 0 and 5 tokens": [
            part(6.0, [1.0, 1.0], 2),
            part(0.0, [0.0, 0.0], 0),
            part(15.0, [4.0, -8.0], 5),
        ],
        "one micro-batch of 4 tokens": [part(8.0, [2.0, 6.0], 4)],
    }
    for what, parts in cases.items():
        kept = [grad.clone() for _, grad, _ in parts]
        loss, grad = things(solution(MicroBatches(parts)), "the loss", "the gradient")
        if any(not torch.equal(mine[1], before) for mine, before in zip(parts, kept, strict=True)):
            raise ExerciseFailed("a gradient that was handed in has changed: add into a new tensor")
        right_loss, right_grad = _right_accumulation(parts)
        expect(f"{what}: the loss, a mean over all tokens that count", loss, right_loss)
        expect(f"{what}: the gradient of that loss", grad, right_grad)


RUNS = {
    "float32 weights": ("learns", "learns"),
    "bfloat16, other seeds": ("stuck", "stuck"),
    "float16 weights": ("stuck", "learns"),
    "bfloat16, a tenth of the rate": ("stuck", "stuck"),
    "bfloat16, loss scale 65536": ("learns", "stuck"),
}
"""What A, who blames the range, and B, who blames the precision, predict of each run."""
DECIDING = {name: said for name, said in RUNS.items() if said[0] != said[1]}
ABOUT = dict.fromkeys(DECIDING, "has it more range, or more precision? A looks at the one, B at the other")


@check(
    "10-decide",
    wrong=[
        lambda: {"float32 weights": ("learns", "learns"), "bfloat16, other seeds": ("stuck", "stuck")},
        lambda: {name: ends[::-1] for name, ends in DECIDING.items()},
        lambda: {"float16 weights": ("stuck", "learns"), "bfloat16, a tenth of the rate": ("stuck", "stuck")},
        lambda: dict.fromkeys(RUNS, ("learns", "stuck")),
        lambda: dict.fromkeys(DECIDING, "learns"),
        lambda: tuple(DECIDING),
    ],
)
def runs_decide_where_range_and_precision_predict_different_ends(solution):
    expect_decision(solution(), stories=("A", "B"), runs=RUNS, because=ABOUT)


def _faults(scale_S, finite_S, zero_share_S, moved_share_S, *, limit=0.3, taken=True, window=10):
    if not finite_S[-window:].any():
        return "no scale helps"
    steps_S = finite_S if taken else np.ones_like(finite_S)
    if np.median(zero_share_S[steps_S]) > limit:
        return "underflow"
    return "steps too short" if np.median(moved_share_S[steps_S]) < 0.5 else "healthy"


def _any_overflow_is_a_fault(scale_S, finite_S, zero_share_S, moved_share_S):
    found = _faults(scale_S, finite_S, zero_share_S, moved_share_S)
    return "no scale helps" if not finite_S.all() else found


def _looks_at_the_last_step_alone(scale_S, finite_S, zero_share_S, moved_share_S):
    return _faults(scale_S[-1:], finite_S[-1:], zero_share_S[-1:], moved_share_S[-1:], window=1)


def _takes_the_mean(scale_S, finite_S, zero_share_S, moved_share_S):
    if not finite_S[-10:].any():
        return "no scale helps"
    if zero_share_S.mean() > 0.3:
        return "underflow"
    return "steps too short" if moved_share_S.mean() < 0.5 else "healthy"


def _counts_skipped_steps_too(scale_S, finite_S, zero_share_S, moved_share_S):
    return _faults(scale_S, finite_S, zero_share_S, moved_share_S, taken=False)


def _asks_for_underflow_first(scale_S, finite_S, zero_share_S, moved_share_S):
    if np.median(zero_share_S[finite_S]) > 0.3:
        return "underflow"
    return _faults(scale_S, finite_S, zero_share_S, moved_share_S)


def _calls_a_low_scale_underflow(scale_S, finite_S, zero_share_S, moved_share_S):
    found = _faults(scale_S, finite_S, zero_share_S, moved_share_S)
    return "underflow" if found == "healthy" and scale_S[-1] < 4096 else found


@check(
    "10-diagnose",
    wrong=[
        _any_overflow_is_a_fault,
        _looks_at_the_last_step_alone,
        _takes_the_mean,
        _counts_skipped_steps_too,
        _calls_a_low_scale_underflow,
        _asks_for_underflow_first,
    ],
)
def log_names_the_fault(solution):
    steps = 41
    ones_S, usual_S = np.ones(steps), np.full(steps, 0.05)
    finite_S = np.ones(steps, dtype=bool)
    search_S = finite_S.copy()
    search_S[[0, 1, 2, 3, 4, 5, 6, 25, steps - 1]] = False  # the last step overflows too
    moved_S = np.where(search_S, 0.97, 0.0)
    dead_S = finite_S.copy()
    dead_S[-12:] = False
    long_search_S = np.arange(steps) >= 23  # more than half of the steps skipped, then all is well
    scale_S = 2.0**24 * np.cumprod(np.where(search_S, 1.0, 0.5))
    long_moved_S = np.where(long_search_S, 0.97, 0.0)
    first_zero_S = np.where(np.arange(steps) < 16, 0.95, 0.05)
    cases = {
        "a search: nine overflows, a scale that halves each time": (
            scale_S,
            search_S,
            usual_S,
            moved_S,
            "healthy",
        ),
        "a scale of 2, no overflow": (2 * ones_S, finite_S, usual_S, 0.97 * ones_S, "healthy"),
        "23 overflows at the start, none after": (scale_S, long_search_S, usual_S, long_moved_S, "healthy"),
        "16 steps of a gradient that is nearly all 0, then 25 good ones": (
            ones_S,
            finite_S,
            first_zero_S,
            0.97 * ones_S,
            "healthy",
        ),
        "the last twelve steps not finite": (scale_S, dead_S, usual_S, 0.97 * dead_S, "no scale helps"),
        "half of the gradient 0, then twelve steps not finite": (
            scale_S,
            dead_S,
            0.5 * ones_S,
            0.97 * dead_S,
            "no scale helps",
        ),
        "half of the gradient 0": (ones_S, finite_S, 0.5 * ones_S, 0.97 * ones_S, "underflow"),
        "a third of the weights moved": (ones_S, finite_S, usual_S, 0.33 * ones_S, "steps too short"),
    }
    for what, (*curves, wanted) in cases.items():
        kept = [curve.copy() for curve in curves]
        got = solution(*curves)
        if got != wanted:
            raise ExerciseFailed(f"{what}: expected {wanted!r}; got {got!r:.80}")
        if not all(np.array_equal(curve, before) for curve, before in zip(curves, kept, strict=True)):
            raise ExerciseFailed("a curve that was handed in has changed: leave them as they are")
