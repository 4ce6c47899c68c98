"""Signs of the gradient: an explosion that the step followed, and growth by an equal factor."""

import numpy as np

from stabviz.trace.symptoms.seen import Finding, Seen

EXPLOSION_FACTOR = 10.0
"""Gradients of the planted healthy runs stay within 5 times their level; batches are not ten times as
steep."""
SUDDEN_FACTOR, SUDDEN_LINES = 30.0, 3
"""The jump that is asked for where the length of the step was not measured: a rate too high takes longer to
this."""


def explosion(seen: Seen) -> Finding | None:
    """The gradient norm jumped, the step followed it, and the loss was lost: nothing held the step back.

    Clipped or adaptive steps cannot follow; growth by an equal factor a step is a rate too high on a smooth
    surface. Where the length of the step was not measured, only a jump within SUDDEN_LINES lines counts.
    """
    if seen.verdict.kind != "diverged" or not seen.has("grad_norm_preclip") or steady_growth(seen):
        return None
    norm_S = np.where(np.isnan(seen.norm_S), 0.0, seen.norm_S)  # infinity is the peak, NaN is none
    peak = int(np.argmax(norm_S))
    followed = step_followed(seen, peak)
    if followed is False or not norm_S[peak] >= EXPLOSION_FACTOR * level_before(norm_S, peak):
        return None
    if followed is None and not _sudden_jump(norm_S):
        return None
    before = f"{level_before(norm_S, peak):.3g} before" + (", and the step was as long" if followed else "")
    words = f"gradient norm {norm_S[peak]:.3g} at step {seen.step(peak)}, {before}; {seen.verdict.evidence}"
    return Finding(seen.step(peak), words, "shown" if followed else "likely")


def _sudden_jump(norm_S) -> bool:
    """Whether some gradient norm is SUDDEN_FACTOR times the largest of the SUDDEN_LINES lines before it."""
    return any(
        norm_S[s] >= SUDDEN_FACTOR * norm_S[s - SUDDEN_LINES : s].max()
        for s in range(SUDDEN_LINES, len(norm_S))
    )


def step_followed(seen: Seen, s: int) -> bool | None:
    """Whether the update at line s was as long as its gradient asked; None if that was not measured."""
    if seen["clipped"][s] == 1 or seen.adaptive and seen.has("update_rms"):
        return False
    if not seen.has("update_rms"):
        return False if seen.adaptive else None
    return not seen["update_rms"][s] < EXPLOSION_FACTOR / 2 * level_before(seen["update_rms"], s)


def level_before(values_S, s: int) -> float:
    """Usual size before line s: the median, or the first value where growth began at once."""
    before = values_S[:s][np.isfinite(values_S[:s])]
    return min(float(np.median(before)), float(before[0])) if before.size else np.inf


STEADY_STEPS, STEADY_SPREAD = 8, 0.25
"""Gradients that grow by an equal factor a step (deviation of the log below a quarter of its mean, 8 steps):
the linear instability of lr > 2 / curvature. An explosion feeds on itself: its factor grows."""


def steady_growth(seen: Seen) -> bool:
    """Whether the gradient norm grew by an equal factor a step over the last STEADY_STEPS steps or more."""
    end = int(np.flatnonzero(seen.bad_S)[0]) if seen.bad_S.any() else len(seen.norm_S)
    last = seen.norm_S[max(end - 4 * STEADY_STEPS, 0) : end]
    last = last[np.isfinite(last) & (last > 0)]
    if len(last) <= STEADY_STEPS:
        return False
    growth = np.diff(np.log(last))[len(last) // 4 :]  # growth may begin within the window
    return bool(growth.mean() > 0.01 and growth.std() < STEADY_SPREAD * growth.mean())
