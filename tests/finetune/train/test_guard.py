"""The guard's decisions, each by values worked out by hand."""

import math

import pytest

from stabviz.finetune.train.guard import REWIND_MARGIN, go_back_to, judge, respond, usual_loss
from stabviz.finetune.train.progress import Progress
from stabviz.trace.spikes import SPIKE_HISTORY, find_spikes

CALM = [1.0, 3.0] * 11  # median 2, every distance from it 1: one robust deviation is 1.4826


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_judge_lets_nothing_through_that_is_not_finite(bad):
    assert judge(bad, 1.0, CALM, sigmas=2.0, height=0.0) == "not_finite"
    assert judge(2.0, bad, CALM, sigmas=2.0, height=0.0) == "not_finite"
    assert judge(bad, 1.0, [], sigmas=2.0, height=0.0) == "not_finite"  # also where spikes are let through


@pytest.mark.parametrize(
    ("loss", "sigmas", "height", "outcome"),
    [
        (2 + 2 * 1.4826 - 1e-6, 2.0, 0.0, "good"),  # two deviations above the median are the limit
        (2 + 2 * 1.4826 + 1e-6, 2.0, 0.0, "spike"),
        (4.999, 2.0, 3.0, "good"),  # beyond the deviations, but not by the smallest height
        (5.001, 2.0, 3.0, "spike"),
        (5.001, 12.0, 3.0, "good"),  # and the other way round: 12 deviations are 17.8
        (-90.0, 2.0, 3.0, "good"),  # a fall is no spike
    ],
)
def test_judge_asks_for_deviations_and_height_both(loss, sigmas, height, outcome):
    assert judge(loss, 1.0, CALM, sigmas=sigmas, height=height) == outcome


def test_judge_has_no_opinion_before_there_is_a_history():
    assert judge(1e9, 1.0, CALM[: SPIKE_HISTORY - 1], sigmas=2.0, height=3.0) == "good"
    assert judge(1e9, 1.0, CALM[:SPIKE_HISTORY], sigmas=2.0, height=3.0) == "spike"


def test_judge_draws_the_line_where_the_verdict_does():
    """On a level loss, where the verdict has no fall to take out of the deviation: one rule for both."""
    assert usual_loss(CALM) == (2.0, pytest.approx(1.4826))
    for loss, spike in ((2 + 7 * 1.4826 - 1e-6, False), (2 + 7 * 1.4826 + 1e-6, True)):
        # an odd number of these values has a deviation of 0, and a 3 is a spike: only the last step counts
        found = [one for one in find_spikes([*CALM, loss], sigmas=7.0) if one.value > 3]
        assert bool(found) == spike
        assert (judge(loss, 1.0, CALM, sigmas=7.0, height=0.0) == "spike") == spike


def test_respond_skips_bad_steps_and_stops_at_the_most_in_a_row():
    responses = [respond("not_finite", Progress(bad_steps=n), 3, 0) for n in (1, 2, 3)]
    assert responses == ["skip", "skip", "stop"]


@pytest.mark.parametrize(
    ("spikes", "last_spike", "response"),
    [(1, -2, "leave_out"), (2, 22, "leave_out"), (2, 23, "rewind"), (3, 23, "rewind"), (4, 23, "stop")],
)
def test_respond_rewinds_at_the_second_spike_in_a_row(spikes, last_spike, response):
    # the step that spiked is attempt 24: 25 were made
    progress = Progress(attempts=25, spikes=spikes, last_spike=last_spike)
    assert respond("spike", progress, 10, 3) == response


def test_go_back_to_passes_over_checkpoints_that_are_too_near():
    assert go_back_to([8, 16, 24], 24 + REWIND_MARGIN) == 24
    assert go_back_to([8, 16, 24], 23 + REWIND_MARGIN) == 16
    assert go_back_to([24, 25], 26) == 24  # all too near: the oldest has to do


def test_rewound_to_forgets_the_steps_and_remembers_what_was_learned_of_them():
    now = Progress(updates=20, attempts=26, spikes=2, last_spike=25, left_out=[3], micro_batch=4, position=26)
    saved = Progress(
        updates=16, attempts=16, micro_batch=8, position=16, recent_losses=[1.0], scheduled=[8, 16]
    )
    back = now.rewound_to(saved)
    assert (back.updates, back.position, back.recent_losses, back.scheduled) == (16, 16, [1.0], [8, 16])
    assert (back.attempts, back.spikes, back.last_spike, back.left_out) == (26, 2, 25, [3])
    assert back.micro_batch == 4
