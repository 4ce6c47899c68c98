"""Signs of held-out data: wrong labels among the training rows."""

import numpy as np

from stabviz.trace.symptoms.seen import Finding, Seen

LABEL_GAP, LABEL_LOSS_GAP, GAP_ERRORS = 0.07, 0.1, 4.0
"""Clean validation ahead of training by 7 points and 0.1 nats and 4 standard errors: dropout costs the
training batches less, and wrong labels of a tenth and less cannot be told from it."""
RATIO_GROWTH = 1.25
"""By the losses alone only where their ratio grows: a training loss that is summed, smoothed or regularised
is larger from the first step on, and wrong labels show as the clean rows are learned."""


def label_noise(seen: Seen) -> Finding | None:
    """Clean validation rows are predicted better than training rows: part of those is labelled wrong.

    Needs a clean validation split; with noise on both sides the task only looks harder. Asked at the best
    validation loss: later the wrong labels are learned by heart, and validation falls behind.
    """
    found = _at_best_validation(seen)
    if found is None:
        return None
    s, around, near = found
    loss_gap = seen.loss_S[around].mean() - seen["validation_loss_nats"][near].mean()
    if not loss_gap >= LABEL_LOSS_GAP:
        return None
    losses = (
        f"training loss {seen.loss_S[around].mean():.3g} against a validation loss of "
        f"{seen['validation_loss_nats'][near].mean():.3g} around step {seen.step(s)}"
    )
    if not (seen.has("accuracy") and seen.has("validation_score")):
        error = seen.loss_S[around].std() / np.sqrt(len(around))
        # a student reads harder texts in training than it is measured on, and has no labels
        other = seen.trace.setting(seen.run, "label_smoothing", 0.0) or seen.trace.setting(
            seen.run, "teacher", None
        )
        sure = loss_gap >= GAP_ERRORS * error and loss_gap >= 0.5 * seen["validation_loss_nats"][near].mean()
        growth = (1 + loss_gap / seen["validation_loss_nats"][near].mean()) / _first_ratio(seen)
        if other or not sure or not growth >= RATIO_GROWTH:
            return None
        words = f"{losses}, a ratio {growth:.2g} times that of the first evaluation; accuracy of training"
        return Finding(seen.step(s), words + " was not logged", "likely")
    train, held = seen["accuracy"][around], seen["validation_score"][near].mean()
    if held - train.mean() < max(LABEL_GAP, GAP_ERRORS * train.std() / np.sqrt(len(train))):
        return None
    return Finding(
        seen.step(s), f"training accuracy {train.mean():.3g} against {held:.3g} on validation; " + losses
    )


def _first_ratio(seen: Seen) -> float:
    """Training loss over validation loss about the first evaluation."""
    at = np.flatnonzero(np.isfinite(seen["validation_loss_nats"]))
    around = seen.loss_S[at[0] // 2 : (at[0] + at[1]) // 2 + 1]
    return float(np.nanmean(around) / seen["validation_loss_nats"][at[0]])


def _at_best_validation(seen: Seen):
    """Line of the best evaluation, the lines between its neighbours, those evaluations; None below three."""
    held = seen["validation_loss_nats"]
    at = np.flatnonzero(np.isfinite(held))
    if at.size < 3 or not np.isfinite(seen.loss_S[at]).all():
        return None
    k = int(np.argmin(held[at]))
    low, high = max(k - 1, 0), min(k + 1, at.size - 1)
    start = at[low] + 1 if low < k else 0
    if high == k:  # the last one: training was still on its way through the lines before it
        start = (start + at[k]) // 2
    around = np.arange(start, at[high] + 1)
    around = around[np.isfinite(seen.loss_S[around])]
    return (int(at[k]), around, at[low : high + 1]) if around.size >= 2 else None
