"""Signs of the loss: a rate too high or without warm-up, and a loss that never came down."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabviz.trace.symptoms.gradient import EXPLOSION_FACTOR, level_before, steady_growth, step_followed
from stabviz.trace.symptoms.seen import Finding, Seen
from stabviz.trace.symptoms.update import SMALL_FIRST_UPDATE

RISE_EARLY, RISE_SIGMAS = 0.02, 5.0
"""Mean loss of steps 1 to 5 above the first one, as a share of it and in standard errors of batch noise."""
PEAK_FACTOR = 1.5
"""Attention that saturates leaves the loss at a plateau below its start; a loss half as much again above the
start is ruined at the output too, by the rate itself."""
EARLY_STEPS = 10
"""Steps in which a missing warm-up does its harm: Adam's moments hold little but the first gradients."""
FULL_RATE = 0.9
"""A first rate of nine tenths of the largest is no warm-up."""
LOGIT_EARLY, LOGIT_EARLY_GROWTH = 40.0, 8.0
"""Early even 40, if it is 8 times the start: with warm-up the same runs reach 10 to 20 there."""


def no_warmup(seen: Seen) -> Finding | None:
    """The rate starts at its full height, and the first steps do harm: loss or attention logits jump.

    Whether a warm-up alone would do, or the rate is too high for one, the run cannot tell: it is the first
    thing to mend. A loss that ends where it began is not asked about: see rate_too_high.
    """
    lr_S = seen["lr"]
    if not seen.has("lr") or not lr_S[0] >= FULL_RATE * np.nanmax(lr_S) or seen.step(0) > EARLY_STEPS:
        return None
    early = np.flatnonzero(seen.trace.steps - seen.trace.steps[0] <= EARLY_STEPS)
    logit_S = seen["max_attention_logit"]
    known = early[np.isfinite(logit_S[early])]
    signs = []
    if known.size and logit_S[known].max() >= max(LOGIT_EARLY, LOGIT_EARLY_GROWTH * logit_S[known[0]]):
        start, highest = logit_S[known[0]], logit_S[known].max()
        signs.append(f"the largest attention logit went from {start:.3g} to {highest:.3g}")
    first, after = seen.loss_S[0], seen.loss_S[1:6].mean()
    error = seen.loss.noise * np.sqrt(1 + 1 / 5)  # of a difference: one batch against the mean of five
    if seen.step(5) <= EARLY_STEPS and after - first >= max(RISE_EARLY * abs(first), RISE_SIGMAS * error):
        signs.append(f"the loss rose from {first:.3g} to {after:.3g} (mean of the next five)")
    if not signs or not seen.adaptive and not known.size or seen.verdict.kind == "stalled" or _ruined(seen):
        return None
    return Finding(
        seen.step(0),
        f"the rate is {lr_S[0]:.3g} at the first step, its full height; within {EARLY_STEPS} steps "
        + " and ".join(signs),
        "likely",
    )


def _ruined(seen: Seen) -> bool:
    """Whether the loss ended at PEAK_FACTOR times its start or non-finite, or went to twice that."""
    return (
        not seen.loss.final < PEAK_FACTOR * seen.loss.start
        or smooth_peak(seen)[1] >= 2 * PEAK_FACTOR * seen.loss.start
    )


def unclear_loss(seen: Seen) -> Finding | None:
    """The loss was lost, and the signals do not tell a rate too high from an explosion.

    Without a gradient norm they look alike. So they do with gradients that grew tenfold while it was not
    measured whether the step followed: with Adam that is a consequence, without clipping and without Adam it
    is the cause.
    """
    found = None if steady_growth(seen) else lost_loss(seen)
    if found is None:
        return None
    if not seen.has("grad_norm_preclip"):
        if seen.adaptive:  # its step is as long as the rate says, whatever the gradient
            return None
        words = "; without a gradient norm a rate too high looks like an explosion"
        return Finding(found.step, found.evidence + words, "open")
    norm_S = np.where(np.isnan(seen.norm_S), 0.0, seen.norm_S)
    peak = int(np.argmax(norm_S))
    level = level_before(norm_S, peak)
    if step_followed(seen, peak) is not None or not norm_S[peak] >= EXPLOSION_FACTOR * level:
        return None
    return Finding(
        found.step,
        f"{found.evidence}; the gradient norm grew from {level:.3g} to {norm_S[peak]:.3g}; whether the step "
        "followed (update_rms, clipped) was not measured: a rate too high, or an explosion",
        "open",
    )


def rate_too_high(seen: Seen) -> Finding | None:
    """The loss rose above its start by more than it ever gained, or ended far above: the steps are too long.

    Also gradients that grow by an equal factor a step, which is lr > 2 / curvature; and a loss that stayed
    where it was although the weights went far, or although their moments remember far larger gradients: the
    step leapt over what there was to learn. A stall by too low a rate leaves the weights where they were.
    """
    if steady_growth(seen) and seen.verdict.kind == "diverged":
        growth = "the gradient norm grew by an equal factor at every step"
        return Finding(seen.verdict.step, f"{growth}; {seen.verdict.evidence}")
    return lost_loss(seen) or _moved_in_vain(seen)


MOVED_FAR, SHRUNK_RATIO = 1.25, 0.3
"""Norm of the weights over its start, and RMS of g / sqrt(v) in the second half, of runs that did not learn:
measured 1.4 and more, 0.05 to 0.3, where the rate was too high; 1.0 and 0.4 to 1 where it was too low."""


def _moved_in_vain(seen: Seen) -> Finding | None:
    """The weights or their gradients' memory went far while nothing was learned: leaps, not rest."""
    if seen.verdict.kind != "stalled":
        return None
    norm_S, ratio_S = seen["param_norm"], seen.typical("second_moment_ratio")
    known = np.flatnonzero(np.isfinite(norm_S))
    if known.size > 1 and norm_S[known].max() >= MOVED_FAR * norm_S[known[0]]:
        at = int(known[np.argmax(norm_S[known] >= MOVED_FAR * norm_S[known[0]])])
        return Finding(
            seen.step(at),
            f"the norm of the weights went from {norm_S[known[0]]:.3g} to {norm_S[known].max():.3g}"
            f", and nothing was learned; {seen.verdict.evidence}",
        )
    ratio = ratio_S[np.isfinite(ratio_S)]
    late = float(np.median(ratio[len(ratio) // 2 :])) if ratio.size > 1 else np.inf
    if late < SHRUNK_RATIO and ratio[0] >= SMALL_FIRST_UPDATE:  # below it from the start: epsilon's doing
        return Finding(
            None,
            f"the second moments remember gradients {1 / late:.0f} times those of the second half (RMS of "
            f"g / sqrt(v) {late:.2g}, {ratio[0]:.2g} at the start), and nothing was learned; "
            f"{seen.verdict.evidence}",
        )
    return None


RATE_SIGMAS = 4.0
"""Median of five losses above the start, in deviations of one batch: runs that stall wander up to 2.5,
planted rates that are too high rise by 6 and more."""
RATE_SHARE = 0.5
"""A loss that stands highest when the rate has fallen to less than half was not thrown there by the rate."""


def lost_loss(seen: Seen) -> Finding | None:
    """The loss was lost, or rose above its start by more than it ever gained, at a rate near its height."""
    at, peak = smooth_peak(seen)
    first, gain, lr_S = seen.loss.start, seen.loss.start - seen.loss.final, seen["lr"]
    if seen.verdict.kind == "diverged":
        risen = (
            seen.loss.rise()
        )  # a loss that fell from its start, and rose again, may stand lower than there
        at, peak, first = (risen.peak_row, risen.peak, risen.low) if risen else (at, peak, first)
    elif seen.verdict.kind in ("healthy", "overfit") and seen.trace.setting(seen.run, "floor_nats") is None:
        return None  # the verdict has asked whether its level rose
    elif not peak - first > max(RATE_SIGMAS * seen.loss.noise, RISE_EARLY * abs(first), gain):
        return None
    if seen.has("lr") and lr_S[at] < RATE_SHARE * np.nanmax(lr_S):
        return None
    where = seen.step(at)
    lr = f" at a rate of {lr_S[at]:.3g}" if np.isfinite(lr_S[at]) else ""
    return Finding(
        where,
        f"the loss rose from {first:.3g} to {peak:.3g} at step {where}{lr} and ended at "
        f"{seen.loss.final:.3g} (medians over {seen.rows}; noise of one {seen.loss.noise:.2g})",
        "likely",
    )


def smooth_peak(seen: Seen) -> tuple[int, float]:
    """Where the median of five losses is highest, and how high: a single spike does not count."""
    finite = np.flatnonzero(np.isfinite(seen.loss_S))
    if not finite.size:
        return 0, np.nan
    width = 5 if finite.size >= 5 else 1
    level = np.median(sliding_window_view(seen.loss_S[finite], width), axis=1)
    top = int(np.argmax(level))
    return int(finite[top + width // 2]), float(level[top])
