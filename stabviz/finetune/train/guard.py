"""What a step may do to the run: pure decisions from plain numbers, with the thresholds beside them.

judge      may this step reach the weights?
respond    it may not: is it skipped, are its rows left out, does the run go back, does it stop?
go_back_to which checkpoint is from well before the trouble
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from stabviz.finetune.train.progress import Progress
from stabviz.trace.spikes import median_and_deviation

Outcome = Literal["good", "not_finite", "spike"]
Response = Literal["skip", "leave_out", "rewind", "stop"]

REWIND_MARGIN = 5
"""Attempts between a spike and the checkpoint to go back to: the nearest may hold bad weights already."""


FAILED = 3
"""Exit code of a run that could not go on, that diverged, or that is no better than the majority's answer."""


class TrainingFailed(RuntimeError):
    """A run that cannot go on; the message names the last good checkpoint."""


def judge(
    loss: float, norm: float, recent_losses: Sequence[float], *, sigmas: float, height: float
) -> Outcome:
    """Decide whether a step may reach the weights, from its loss and the gradient's norm before clipping.

    A spike is a loss above the median of `recent_losses` by `sigmas` robust deviations and by `height`: both,
    since a calm run has a tiny deviation, and a noisy one jumps high without harm. With fewer than
    SPIKE_HISTORY recent losses nothing is a spike; an empty list turns the rule off.

    Units:  loss, recent_losses and height in nats
    Source: robust form of OLMo 2's spike score, see `stabviz.trace.spikes.find_spikes`

    >>> calm = [2.0, 2.1] * 15
    >>> [judge(loss, 1.0, calm, sigmas=12.0, height=3.0) for loss in (2.2, 9.0, math.nan)]
    ['good', 'spike', 'not_finite']
    """
    # isfinite, not isnan: an infinite norm makes the clip factor 0, and 0 * inf is NaN in the weights.
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "not_finite"
    median, deviation = usual_loss(recent_losses)
    # Too short a history has the median NaN, and no loss is greater than NaN.
    return "spike" if loss > median + max(sigmas * deviation, height) else "good"


def usual_loss(recent_losses: Sequence[float]) -> tuple[float, float]:
    """Return median and robust deviation of the recent losses; NaN for fewer than SPIKE_HISTORY."""
    median_S, deviation_S = median_and_deviation(np.array([recent_losses]))
    return float(median_S[0]), float(deviation_S[0])


def respond(
    outcome: Literal["not_finite", "spike"], progress: Progress, max_bad_steps: int, max_rewinds: int
) -> Response:
    """Decide what follows a step that was dropped; `progress` counts it, but holds the spike before this one.

    One spike is the batch's fault: its rows are left out. A second at the very next attempt comes from other
    rows, so that the weights must be bad already: the run goes back to an earlier checkpoint.

    >>> [respond("spike", Progress(attempts=26, spikes=2, last_spike=n), 10, 3) for n in (16, 24)]
    ['leave_out', 'rewind']
    """
    if outcome == "not_finite":
        return "stop" if progress.bad_steps >= max_bad_steps else "skip"
    if progress.spikes > max_rewinds:
        return "stop"
    return "rewind" if progress.last_spike == progress.attempts - 2 else "leave_out"


def go_back_to(scheduled: Sequence[int], attempts: int) -> int:
    """Return the newest of the checkpoints `scheduled` that is REWIND_MARGIN attempts old, else the oldest.

    >>> go_back_to([8, 16, 24], attempts=26), go_back_to([24, 25], attempts=26)
    (16, 24)
    """
    early = [attempt for attempt in scheduled if attempt <= attempts - REWIND_MARGIN]
    return early[-1] if early else scheduled[0]
