"""Signs of the update: an Adam whose steps are too long at first, or tiny throughout."""

import numpy as np

from stabviz.trace.symptoms.seen import Finding, Seen

FIRST_STEPS = 20
"""Bias correction is worth a factor of 1.5 and more until here (beta2 = 0.999, beta1 = 0.9)."""
UNCORRECTED_RMS = 1.5
"""Corrected Adam's update cannot pass 1.2 lr in its first 20 steps, whatever the gradients (Cauchy-Schwarz,
beta1 0.9, beta2 0.95 to 0.999), and starts at 1 or below; without the correction it is 3.2 at the first step,
6.5 at the tenth."""


def missing_bias_correction(seen: Seen) -> Finding | None:
    """An Adam's first updates are longer than a corrected Adam's can be; beta2 of 0.95 does not show it."""
    if not seen.adaptive:
        return None
    update_S = seen.most("update_rms")
    early = np.flatnonzero(np.isfinite(update_S) & (seen.trace.steps < FIRST_STEPS))
    if not early.size or update_S[early].max() <= UNCORRECTED_RMS:
        return None
    first_and_longest = dict.fromkeys([early[0], early[np.argmax(update_S[early])]])
    steps = ", ".join(f"{update_S[s]:.3g} lr at step {seen.step(s)}" for s in first_and_longest)
    bound = f"with the correction it starts at 1 or below and stays under {UNCORRECTED_RMS}"
    return Finding(seen.step(early[0]), f"update RMS of {steps}; {bound}")


SMALL_UPDATE = 0.05
"""Gradients of pure noise still give Adam updates of sqrt((1 - beta1) / (1 + beta1)) = 0.23 lr; a fifth of
that means that the denominator is not the gradient's."""
SMALL_FIRST_UPDATE = 0.5
"""Adam's first update is |g| / (|g| + epsilon): half of lr or less where epsilon is as large as g."""
STARVED_RATIO = 0.2
"""RMS of g / max(sqrt(v), epsilon) is near 1; a fifth, with a small update: epsilon is the larger one."""


def epsilon_too_large(seen: Seen) -> Finding | None:
    """Adam's updates are tiny from the first step on although gradients arrive: epsilon outweighs sqrt(v).

    A spiky gradient makes updates small too, but not the first, which is 1 lr where epsilon does not matter.
    """
    if not seen.adaptive:
        return None
    update_S, ratio_S = seen.typical("update_rms"), seen.typical("second_moment_ratio")
    at = np.flatnonzero(np.isfinite(update_S))
    if not at.size or not seen.norm_S[at].any() or not np.median(update_S[at]) < SMALL_UPDATE:
        return None
    first = int(at[0])
    # a log that begins late cannot show the first update: then the ratio has to say it
    from_start = seen.step(first) < FIRST_STEPS
    if from_start and update_S[first] >= SMALL_FIRST_UPDATE:
        return None
    ratio = np.median(ratio_S[np.isfinite(ratio_S)]) if np.isfinite(ratio_S).any() else np.nan
    if not from_start and not ratio < STARVED_RATIO:
        return None
    norm = np.nanmedian(seen.norm_S) if seen.has("grad_norm_preclip") else np.nan
    return Finding(
        seen.step(first),
        f"update RMS of {update_S[first]:.2g} lr at step {seen.step(first)}, {np.median(update_S[at]):.2g} "
        f"lr in the median, with a gradient norm of {norm:.2g} (median); RMS of g / max(sqrt(v), epsilon) "
        f"{ratio:.2g}",
    )
