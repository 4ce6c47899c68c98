"""Signs of held-out data: wrong labels, and a model that learned its training rows by heart."""

import numpy as np

from stabviz.trace.symptoms.seen import Finding, Seen

LABEL_GAP, LABEL_LOSS_GAP, GAP_ERRORS = 0.07, 0.1, 4.0
"""Clean validation ahead of training by 7 points and 0.1 nats and 4 standard errors: dropout costs the
training batches less, and wrong labels of a tenth and less cannot be told from it."""


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
        smoothed = seen.trace.setting(seen.run, "label_smoothing", 0.0)
        sure = loss_gap >= GAP_ERRORS * error and loss_gap >= 0.5 * seen["validation_loss_nats"][near].mean()
        if smoothed or not sure:
            return None
        return seen.step(s), losses + "; accuracy of training was not logged"
    train, held = seen["accuracy"][around], seen["validation_score"][near].mean()
    if held - train.mean() < max(LABEL_GAP, GAP_ERRORS * train.std() / np.sqrt(len(train))):
        return None
    return seen.step(s), f"training accuracy {train.mean():.3g} against {held:.3g} on validation; " + losses


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


OVERFIT_RISE, OVERFIT_NATS, OVERFIT_FALL = 0.25, 0.05, 0.3
"""Validation loss up by 25 % and 0.05 nats from its best, still at the last two evaluations, while the
training loss fell by 30 %: a fine-tuned model grows surer of its errors by less while its score still
rises."""
SCORE_GAIN, OVERFIT_SURE = 0.03, 0.5
"""A score that rose by three points since says that the longer training paid, if its errors did not grow so
sure that the loss is half as high again; a point or two is the noise of a few hundred validation rows."""


def overfit(seen: Seen) -> Finding | None:
    """Validation loss turned and rose for good while the training loss went on falling."""
    held = seen["validation_loss_nats"]
    at = np.flatnonzero(np.isfinite(held))
    if at.size < 3:
        return None
    k = int(np.argmin(held[at]))
    best, last = held[at[k]], held[at[max(k + 1, at.size - 2) :]]
    if not last.size or last.min() < best + max(OVERFIT_RISE * best, OVERFIT_NATS):
        return None
    around = seen.loss_S[at[max(k - 1, 0)] : at[min(k + 1, at.size - 1)] + 1]
    around = around[np.isfinite(around)]
    if not around.size or seen.final > (1 - OVERFIT_FALL) * around.mean():
        return None
    score_S = seen["validation_score"][at]
    # NaN compares as no gain: without a score the loss alone decides
    gained = np.isfinite(score_S[[k, -1]]).all() and score_S[-1] > score_S[k] + SCORE_GAIN
    if gained and last.min() < (1 + OVERFIT_SURE) * best:
        return None
    return seen.step(int(at[k])), (
        f"validation loss was best, {best:.3g}, at step {seen.step(int(at[k]))} and is "
        f"{last[-1]:.3g} at the end; training loss fell from {around.mean():.3g} to "
        f"{seen.final:.3g} meanwhile"
    )
