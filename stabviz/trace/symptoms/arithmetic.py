"""Signs of the arithmetic: overflow of float16, and a NaN that came out of nowhere."""

import numpy as np

from stabviz.trace.symptoms.seen import Finding, Seen

OVERFLOW_SHARE = 0.05
"""Torch's loss scale doubles every 2,000 steps and pays one overflow for it: 0.05 % of steps. A hundred times
that, in the second half of the run, where the scale had time to settle, is no search for a scale."""
LEAST_SCALE = 1.0
"""A loss scale below 1 shrinks gradients: what overflows then is the forward pass, and no scale will help."""


def fp16_overflow(seen: Seen) -> Finding | None:
    """Loss scaling never settles: overflow goes on in the second half of the run, or the scale falls below 1.

    A data fault that gives NaN at every step looks the same where a scale is in use.
    """
    if not seen.scaled:
        return None
    over_S = seen.bad_S.copy()  # some logs hold the event of an overflow, others only its infinite norm
    for event in seen.trace.events:
        if event["run"] == seen.run and event["kind"] == "overflow":
            over_S |= seen.trace.steps == event["step"]
    share = over_S[len(over_S) // 2 :].mean()
    scale_S = seen["loss_scale"]
    known = np.flatnonzero(np.isfinite(scale_S))
    collapsed = bool(known.size) and scale_S[known[-1]] < LEAST_SCALE
    if share < OVERFLOW_SHARE and not collapsed:
        return None
    first = int(np.flatnonzero(over_S)[0]) if over_S.any() else int(known[0])
    ends = scale_S[known[[0, -1]]] if known.size else ()
    scales = "; the loss scale went from {:.3g} to {:.3g}".format(*ends) if known.size else ""
    return Finding(
        seen.step(first),
        f"{over_S.sum()} of {len(over_S)} steps overflowed, {share:.0%} of the second half; "
        f"the first at step {seen.step(first)}{scales}",
    )


BAD_SHARE = 0.05
"""A rare skipped step is an accident; one in twenty of the second half is a fault in the data or the
arithmetic. In the first half fp16 may still be looking for its loss scale, and not every log holds the
scale."""
GROWTH = 10.0
"""Loss or gradient norm ten times its level just before it stopped being finite: it grew. Less: out of
nowhere."""


def hidden_nan(seen: Seen) -> Finding | None:
    """A value stopped being finite without having grown, whether the log shows it or not.

    Hidden: a finite loss beside a gradient norm that is NaN, or a loss that is exactly 0 from one line to the
    next. Seen: loss or gradient NaN from a step to the end, or at one step in twenty, with nothing unusual
    before the first.
    """
    bad = np.flatnonzero(seen.bad_S)
    if seen.verdict.kind == "diverged" and seen.loss_S[-1] == 0.0:  # no run ends there but by a NaN replaced
        return Finding(seen.verdict.step, seen.verdict.evidence)
    if not bad.size or seen.scaled:
        return None
    lasting = seen.bad_S[-1] or seen.bad_S[len(seen.bad_S) // 2 :].mean() >= BAD_SHARE
    if not lasting or _grew_before(seen, bad[0]):
        return None
    s = int(bad[0])
    hidden = np.flatnonzero(seen.bad_S & np.isfinite(seen.loss_S))
    if hidden.size:
        return Finding(
            seen.step(s),
            f"gradient norm {seen.norm_S[s]} from step {seen.step(s)} on, while the log still shows "
            f"finite losses at {hidden.size} lines, the last one {seen.loss_S[hidden[-1]]:.3g}",
        )
    before = f"{seen.loss_S[s - 1]:.3g}, gradient norm {seen.norm_S[s - 1]:.3g}"
    before = before if s else "nothing: the first line"
    words = f"loss {seen.loss_S[s]} at step {seen.step(s)} without growth; one line before {before}"
    return Finding(seen.step(s), words)


def _grew_before(seen: Seen, s: int) -> bool:
    """Whether loss or gradient norm grew GROWTH-fold over the five lines before s, or is infinite there."""
    if np.isposinf(seen.loss_S[s]) or np.isposinf(seen.norm_S[s]):
        return True
    for values_S in (seen.loss_S, seen.norm_S):
        before = values_S[:s][np.isfinite(values_S[:s])]
        # the five lines that may have grown are not part of what was usual before them
        usual = before[:-5] if before.size > 9 else before[:1]
        if before.size > 1 and before[-5:].max() >= GROWTH * np.median(usual):
            return True
    return False
