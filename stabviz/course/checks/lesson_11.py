"""Checks of lesson 11: failed runs counted, a guarded step, which runs tell two stories apart, a Trace."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision
from stabviz.trace import Trace


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


def _adam(param, grad, m, v, t, lr):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    return param - lr * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def _only_nan(param, grad, m, v, t, lr):
    return (param, m, v) if grad.isnan().any() else _adam(param, grad, m, v, t, lr)


def _moments_take_it(param, grad, m, v, t, lr):
    new, m, v = _adam(param, grad, m, v, t, lr)
    return (new if grad.isfinite().all() else param), m, v


def _zeros_the_bad_entries(param, grad, m, v, t, lr):
    return _adam(param, torch.nan_to_num(grad, 0.0, 0.0, 0.0), m, v, t, lr)


def _zero_gradient_in_its_place(param, grad, m, v, t, lr):
    return _adam(param, grad if grad.isfinite().all() else torch.zeros_like(grad), m, v, t, lr)


def _times_zero(param, grad, m, v, t, lr):
    new, new_m, new_v = _adam(param, grad, m, v, t, lr)
    fine = grad.isfinite().all().to(grad.dtype)
    return tuple(old + fine * (now - old) for old, now in ((param, new), (m, new_m), (v, new_v)))


def _no_correction(param, grad, m, v, t, lr):
    if not grad.isfinite().all():
        return param, m, v
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    return param - lr * m / (v.sqrt() + 1e-8), m, v


def _entry_by_entry(param, grad, m, v, t, lr):
    return tuple(
        torch.where(grad.isfinite(), now, old)
        for old, now in zip((param, m, v), _adam(param, grad, m, v, t, lr), strict=True)
    )


def _edits_in_place(param, grad, m, v, t, lr):
    if not grad.isfinite().all():
        return param, m, v
    new, new_m, new_v = _adam(param, grad, m, v, t, lr)
    return param.copy_(new), m.copy_(new_m), v.copy_(new_v)


@check(
    "11-guarded-adam",
    wrong=[
        _adam,
        _only_nan,
        _moments_take_it,
        _zeros_the_bad_entries,
        _zero_gradient_in_its_place,
        _times_zero,
        _no_correction,
        _entry_by_entry,
        _edits_in_place,
    ],
)
def guarded_adam_lets_nothing_through(solution):
    begun = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 0.0, -0.3]), torch.tensor([0.2, 0.01, 0.09])
    names = ("param", "m", "v")

    def call(grad, t):
        given = [x.clone() for x in begun]
        found = solution(given[0], grad, given[1], given[2], torch.tensor(t, dtype=torch.float64), 0.1)
        for name, x, before in zip(names, given, begun, strict=True):
            if not torch.equal(x, before):
                raise ExerciseFailed(f"{name} was edited in place: make new tensors instead")
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise ExerciseFailed(f"return three things, param, m and v; got {found!r:.80}")
        return found

    for t in (1.0, 7.0):
        grad = torch.tensor([0.3, -0.4, 0.05])
        for name, mine, right in zip(
            names, call(grad, t), _adam(begun[0], grad, *begun[1:], t, 0.1), strict=True
        ):
            expect(
                f"a finite gradient at t = {t:g}: {name} as after Adam's step, with bias correction",
                mine,
                right,
            )
    for what, bad in (("NaN", torch.nan), ("infinity", torch.inf), ("minus infinity", -torch.inf)):
        for name, mine, before in zip(names, call(torch.tensor([0.3, bad, 0.05]), 7.0), begun, strict=True):
            if not isinstance(mine, torch.Tensor) or not torch.equal(mine, before):
                got = mine.tolist() if isinstance(mine, torch.Tensor) else mine
                words = f"one {what} in the gradient: {name} must stay {before.tolist()}; got {got}"
                raise ExerciseFailed(words + ", and the steps after this one are to be sound, too")


RUNS = {
    "correction": ("learns", "learns"),
    "no correction": ("fails", "fails"),
    "no correction, rate / 6": ("learns", "learns"),
    "correction, lower part frozen": ("fails", "learns"),
    "correction, writers x 5": ("learns", "fails"),
}


@check(
    "11-tell-apart",
    wrong=[
        lambda: {"correction": ("learns", "fails"), "correction, writers x 5": ("learns", "fails")},
        lambda: {"correction, lower part frozen": ("fails", "learns"), "no correction": ("fails", "learns")},
        lambda: {
            "correction, lower part frozen": ("learns", "fails"),
            "correction, writers x 5": ("fails", "learns"),
        },
        lambda: {
            "correction, lower part frozen": ("learns", "learns"),
            "correction, writers x 5": ("learns", "fails"),
        },
        lambda: {"correction, lower part frozen": ("fails", "learns")},
        lambda: {name: ("fails", "learns") for name in RUNS},
        lambda: ["correction, lower part frozen", "correction, writers x 5"],
    ],
)
def two_runs_tell_the_stories_apart(solution):
    expect_decision(
        solution(),
        stories=("starved", "drowned"),
        runs=RUNS,
        because={
            "no correction, rate / 6": "no step is too long there, by either story's lights",
            "correction, lower part frozen": "what is frozen learns nothing; are its branches large?",
            "correction, writers x 5": "which story asks for gradients below, and which for small branches?",
        },
    )


BOTTOM = "grad_norm_preclip/block0"


def _name_it(trace, share=0.9, times=2.0, fall=10.0):
    loss_S, chance = trace["loss_nats"][0], trace.config["chance_nats"]
    if not np.isfinite(loss_S).all() or (loss_S[-3:] == 0).all():
        return "NaN"
    if loss_S[0] > times * chance:
        return "scale"
    if trace.final()[0] < share * chance:
        return "learning"
    if BOTTOM not in trace:
        return "cannot tell"
    return "dead" if trace.final(BOTTOM)[0] < trace[BOTTOM][0, 0] / fall else "slow"


def _trusts_zeros(trace):
    found = trace["loss_nats"][0]
    return "learning" if (found[-3:] == 0).all() else _name_it(trace)


def _zero_anywhere(trace):
    return "NaN" if (trace["loss_nats"][0] == 0).any() else _name_it(trace)


def _dead_by_the_loss(trace):
    found = _name_it(trace)
    return "dead" if found in ("slow", "cannot tell") else found


def _absolute_gradient(trace):
    found = _name_it(trace)
    if found in ("slow", "dead"):
        return "dead" if trace.final(BOTTOM)[0] < 0.1 else "slow"
    return found


def _ln_2_for_all(trace):
    found = _name_it(trace)
    if found in ("NaN", "scale", "cannot tell"):
        return found
    return "learning" if trace.final()[0] < 0.9 * 0.693 else found if found != "learning" else "slow"


def _gradient_first(trace):
    return "cannot tell" if BOTTOM not in trace else _name_it(trace)


def _first_loss_must_be_chance(trace):
    found = _name_it(trace)
    return (
        "scale" if found != "NaN" and trace["loss_nats"][0, 0] > 1.2 * trace.config["chance_nats"] else found
    )


def _no_scale(trace):
    return _name_it(trace, times=1e9)


def _made_up(loss, bottom=None, chance=0.693, put=None, at=slice(0)):
    """A Trace of one run of 40 steps: signals go evenly from first to last value; `put` stands at `at`."""
    signals = {}
    for name, ends in (("loss_nats", loss), (BOTTOM, bottom)):
        if ends is not None:
            signals[name] = np.interp(np.arange(40), np.linspace(0, 30, len(ends)), ends)[None]
    signals["loss_nats"][0, at] = put
    return Trace(steps=range(40), signals=signals, runs=[{}], config={"chance_nats": chance})


@check(
    "11-name-it",
    wrong=[
        _trusts_zeros,
        _zero_anywhere,
        _dead_by_the_loss,
        _absolute_gradient,
        _ln_2_for_all,
        _gradient_first,
        _first_loss_must_be_chance,
        _no_scale,
    ],
)
def the_log_is_read(solution):
    late = slice(25, None)
    nan = _made_up((0.7, 0.5), put=np.nan, at=late)
    zeros = _made_up((0.7, 0.5), (1.6, 1.5), put=0.0, at=late)
    hole = _made_up((0.7, 0.3), (1.6, 1.5), put=0.0, at=20)
    for what, expected, trace in (
        ("two classes, loss down to 0.4", "learning", _made_up((0.75, 0.4), (1.6, 1.9))),
        ("the same, no gradient logged", "learning", _made_up((0.75, 0.4))),
        (
            "flat at ln 2, the bottom gradient falls a thousandfold",
            "dead",
            _made_up((0.95, 0.69), (1.6, 0.001)),
        ),
        ("flat at ln 2, the bottom gradient as at first", "slow", _made_up((0.8, 0.69), (1.6, 1.4))),
        (
            "flat, a gradient that is small from the first step on",
            "slow",
            _made_up((0.7, 0.69), (0.02, 0.015)),
        ),
        ("flat, a gradient that falls from 40 to 1", "dead", _made_up((0.7, 0.69), (40.0, 1.0))),
        ("flat, and nothing logged but the loss", "cannot tell", _made_up((0.7, 0.69))),
        ("the loss is NaN from step 25 on", "NaN", nan),
        ("the loss is exactly 0.0 from step 25 on", "NaN", zeros),
        ("one exact 0.0 half way, and it goes on falling", "learning", hole),
        ("ten classes, first loss 6.9", "scale", _made_up((6.9, 1.2), (1.6, 1.9), chance=2.303)),
        (
            "ten classes, first loss 2.9, down to 1.2",
            "learning",
            _made_up((2.9, 1.2), (1.6, 1.9), chance=2.303),
        ),
        ("ten classes, down to 1.9", "learning", _made_up((2.4, 1.9), (1.6, 1.9), chance=2.303)),
        ("ten classes, flat", "slow", _made_up((2.4, 2.3), (1.6, 1.9), chance=2.303)),
    ):
        got = solution(trace)
        if got != expected:
            raise ExerciseFailed(
                f"{what} (chance {trace.config['chance_nats']:g}): expected {expected!r}; got {got!r:.60}"
            )
