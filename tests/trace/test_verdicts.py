"""Verdicts: planted runs on both sides of every boundary, and noise that must not be called a spike."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace, find_spikes, lr_sensitivity, verdict, verdicts

CHANCE, FLOOR, S = 4.0, 2.0, 211
WAY = CHANCE - FLOOR


def learning(final=2.4, noise=0.0, seed=0):
    """A loss that falls from chance to `final` and lies there."""
    fall = np.exp(-np.arange(S) / 15)
    return final + (CHANCE - final) * fall + np.random.default_rng(seed).normal(0, noise, S)


def judge(loss_S, norm_S=None, **options):
    signals = {"loss_nats": [loss_S]} | ({} if norm_S is None else {"grad_norm_preclip": [norm_S]})
    trace = Trace(
        steps=np.arange(S) * 2,
        signals=signals,
        runs=[{"seed": 0}],
        config={"chance_nats": CHANCE, "floor_nats": FLOOR} | options,
    )
    return verdict(trace, 0)


def test_verdict_healthy_states_how_far_the_run_came():
    got = judge(learning(2.4))
    assert (got.kind, got.step) == ("healthy", None)
    assert got.evidence == "loss went from 4 to 2.4 nats, 80% of the way from chance 4 to the floor 2"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_verdict_diverged_at_the_first_non_finite_loss(value):
    loss = learning()
    loss[101] = value
    loss[102:] = math.nan
    got = judge(loss)
    assert (got.kind, got.step) == ("diverged", 202)
    assert got.evidence == f"loss became {value} at step 202; it was 2.4 nats one step before"


def test_verdict_diverged_at_a_non_finite_gradient_with_a_finite_loss():
    loss, norm = learning(), np.ones(S)
    norm[57], norm[58:], loss[58:] = math.inf, math.nan, math.nan
    got = judge(loss, norm)
    assert (got.kind, got.step) == ("diverged", 114)
    assert got.evidence.startswith("gradient norm became inf at step 114, loss still 2.4")


def test_verdict_of_a_skipped_step_is_healthy_and_says_so():
    norm = np.ones(S)
    norm[[7, 57]] = math.inf, math.nan
    got = judge(learning(), norm)
    assert got.kind == "healthy"
    assert got.evidence.endswith("2 non-finite steps were skipped")


@pytest.mark.parametrize(("share", "kind"), [(0.09, "stalled"), (0.11, "diverged")])
def test_verdict_diverged_above_chance_by_a_tenth_of_the_way(share, kind):
    assert judge(np.full(S, CHANCE) + share * WAY * (np.arange(S) > 5)).kind == kind


def test_verdict_diverged_needs_a_final_above_the_initial_loss_too():
    """A bad initialisation that comes down towards chance has not diverged, it has learned nothing yet."""
    assert judge(np.linspace(9, 5, S)).kind == "stalled"
    assert judge(np.linspace(5, 9, S)).kind == "diverged"


@pytest.mark.parametrize(("lost", "kind"), [(0.45, "spiked"), (0.55, "diverged")])
def test_verdict_diverged_when_more_than_half_of_what_was_learned_is_lost(lost, kind):
    loss = learning(2.4)
    rise = np.clip((np.arange(S) - 100) / 60, 0, 1)
    got = judge(loss + lost * (CHANCE - 2.4) * rise)
    assert got.kind == kind
    if kind == "diverged":
        assert 180 <= got.step <= 204
        assert "had come down to 2.4" in got.evidence
    else:
        assert "has not come back yet" in got.evidence


@pytest.mark.parametrize(("learned", "kind"), [(0.08, "stalled"), (0.14, "diverged")])
def test_verdict_diverged_by_loss_of_learning_needs_something_learned(learned, kind):
    """Up to a tenth of the way is what a stalled run's wandering reaches."""
    loss = CHANCE - learned * WAY * np.clip(1.5 - np.abs(np.arange(S) - 80) / 40, 0, 1)
    assert judge(loss).kind == kind


@pytest.mark.parametrize(("covered", "kind"), [(0.04, "stalled"), (0.06, "healthy")])
def test_verdict_stalled_below_a_twentieth_of_the_way(covered, kind):
    got = judge(learning(CHANCE - covered * WAY, noise=0.02))
    assert got.kind == kind
    if kind == "stalled":
        assert "5% would count as learning" in got.evidence


@pytest.mark.parametrize(("height", "kind"), [(0.09, "healthy"), (0.12, "spiked")])
def test_verdict_spiked_from_a_tenth_of_the_way(height, kind):
    loss = learning()
    loss[150] += height * WAY
    assert judge(loss).kind == kind


@pytest.mark.parametrize(("sigmas", "kind"), [(5, "healthy"), (11, "spiked")])
def test_verdict_spiked_beyond_seven_deviations(sigmas, kind):
    loss = learning(noise=0.1)
    loss[150] = 2.4 + sigmas * 0.1  # 5 sigmas = 0.5 is above the smallest height of 0.2
    assert judge(loss).kind == kind


@pytest.mark.parametrize(("at", "kind"), [(19, "healthy"), (25, "spiked")])
def test_verdict_spiked_needs_twenty_steps_of_history(at, kind):
    loss = np.full(S, 2.4)
    loss[0], loss[at] = CHANCE, 3.9
    assert judge(loss).kind == kind


def test_verdict_spiked_names_step_height_and_recovery():
    loss = learning()
    loss[150:155] += [0.5, 1.5, 1.0, 0.6, 0.2]
    loss[190] += 0.4
    got = judge(loss)
    assert (got.kind, got.step) == ("spiked", 302)
    assert got.evidence.startswith("loss jumped from 2.4 to 3.9 nats at step 302")
    assert got.evidence.endswith("and came back; 2 spikes in all")


def test_verdict_spiked_that_has_not_come_back_is_said():
    loss = learning()
    loss[-1] += 1.5
    assert judge(loss).evidence.endswith("has not come back yet")


@pytest.mark.parametrize(("factor", "kind"), [(4, "healthy"), (20, "spiked")])
def test_verdict_spiked_by_the_gradient_norm_alone(factor, kind):
    norm = np.exp(np.random.default_rng(3).normal(0, 0.1, S))
    norm[97] = factor
    got = judge(learning(), norm)
    assert got.kind == kind
    if kind == "spiked":
        assert got.step == 194
        assert "gradient norm jumped from" in got.evidence


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.15])
def test_verdict_calls_no_noise_a_spike(noise):
    """263 noisy runs, 55,000 steps; gradient norms with log-normal noise of 0.3, as of small batches."""
    rng = np.random.default_rng(7)
    R = 263
    loss_RS = learning(2.4) + rng.normal(0, noise, (R, S))
    norm_RS = np.exp(rng.normal(0, 0.3, (R, S))) * (0.5 + np.exp(-np.arange(S) / 40))
    trace = Trace(
        steps=range(S),
        signals={"loss_nats": loss_RS, "grad_norm_preclip": norm_RS},
        runs=[{"seed": r} for r in range(R)],
        config={"chance_nats": CHANCE, "floor_nats": FLOOR},
    )
    assert {v.kind for v in verdicts(trace)} == {"healthy"}


def test_verdict_calls_no_slow_rise_a_spike():
    loss = learning(2.4, noise=0.02)
    assert judge(loss + np.linspace(0, 0.5, S)).kind == "healthy"


def test_verdict_takes_levels_from_labels_then_configuration_then_defaults():
    loss = np.linspace(4.0, 3.5, S)
    trace = Trace(
        steps=range(S),
        signals={"loss_nats": [loss, loss]},
        config={"chance_nats": 4.0, "floor_nats": 2.0},
        runs=[{"floor_nats": -20.0}, {}],
    )
    assert [v.kind for v in verdicts(trace)] == ["stalled", "healthy"]
    assert verdict(trace, 1, floor=-20.0).kind == "stalled"
    bare = Trace(steps=range(S), signals={"loss_nats": [loss]}, runs=[{}])
    assert verdict(bare, 0).evidence.startswith(
        "loss went from 4 to 3.52 nats, 12% of the way from initial loss 4"
    )


def test_verdict_refuses_what_it_cannot_judge():
    trace = Trace(steps=range(S), signals={"loss_nats": [learning()]}, runs=[{}])
    with pytest.raises(ValueError, match=r"run must be an index in 0\.\.0; got 1"):
        verdict(trace, 1)
    with pytest.raises(ValueError, match="floor must be below chance = 2; got 3"):
        verdict(trace, 0, floor=3, chance=2)
    assert verdict(Trace(steps=[], signals={"loss_nats": [[]]}, runs=[{}]), 0).kind == "too_short"


def test_verdict_of_a_first_non_finite_step_has_no_step_before():
    assert judge(np.full(S, math.nan)).evidence == "loss became nan at step 0"


def test_find_spikes_is_the_plain_rule_written_out():
    """The vectorised window against a loop with numpy's own median."""
    rng = np.random.default_rng(11)
    values = rng.standard_t(2, 307) - 0.02 * np.arange(307)
    values[[41, 83]] = math.nan
    high = []
    for s in range(20, len(values)):
        at = np.arange(max(0, s - 37), s)
        pairs = [values[i + 10] - values[i] for i in at if i + 10 < s]
        pairs = [pair for pair in pairs if np.isfinite(pair)]
        fall = min(np.median(pairs) / 10, 0) if len(pairs) >= 20 else 0
        at = at[np.isfinite(values[at])]
        if len(at) >= 20:
            flat = values[at] - fall * (at - s)
            sigma = 1.4826 * np.median(np.abs(flat - np.median(flat)))
            if values[s] - np.median(values[at]) > 5 * sigma:
                high.append(s)
    starts = [s for i, s in enumerate(high) if i == 0 or s - high[i - 1] >= 20]
    found = find_spikes(values, sigmas=5, window=37)
    assert len(starts) >= 3
    assert len(found) == len(starts)
    assert all(spike.index in high for spike in found)


def test_find_spikes_sees_a_spike_while_the_curve_still_falls():
    loss = learning(noise=0.03) + 1.2 * np.exp(-np.arange(S) / 40)
    loss[61] += 1.2
    assert [spike.index for spike in find_spikes(loss, min_height=0.2)] == [61]


def test_find_spikes_reports_no_fewer_deviations_than_asked():
    rng = np.random.default_rng(13)
    values = rng.standard_t(2, 997)
    spikes = find_spikes(values)
    assert len(spikes) > 5
    assert min(spike.sigmas for spike in spikes) > 7


def test_find_spikes_needs_no_data_and_a_usable_window():
    assert find_spikes([]) == []
    assert find_spikes([1.0] * 19) == []
    with pytest.raises(ValueError, match="window must be at least 20 values; got 19"):
        find_spikes([1.0], window=19)


def test_lr_sensitivity_by_hand():
    lrs = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
    losses = [3.0, 2.5, 2.0, 2.25, 3.0, 9.0, math.nan]
    # best 2; capped at 4: (1 + .5 + 0 + .25 + 1 + 2 + 2) / 7
    assert lr_sensitivity(lrs, losses, 4.0) == pytest.approx(6.75 / 7, rel=1e-15)


def test_lr_sensitivity_is_zero_for_flat_and_blind_to_order_and_level():
    assert lr_sensitivity([1e-3, 1e-2], [2.0, 2.0], 4.0) == 0
    rng = np.random.default_rng(5)
    lrs, losses = 10.0 ** np.arange(-5, 0), rng.uniform(2, 6, 5)
    value = lr_sensitivity(lrs, losses, 4.0)
    order = rng.permutation(5)
    assert lr_sensitivity(lrs[order], losses[order], 4.0) == pytest.approx(value, rel=1e-12)
    assert lr_sensitivity(lrs, losses + 1, 5.0) == pytest.approx(value, rel=1e-12)
    assert lr_sensitivity(lrs, [math.inf] * 5, 4.0) == 0


@pytest.mark.parametrize(
    ("lrs", "losses", "initial", "message"),
    [
        ([1e-3], [2.0], 4.0, "lrs must be 2 or more distinct rates > 0"),
        ([1e-3, 1e-3], [2.0, 2.0], 4.0, "lrs must be 2 or more distinct rates > 0"),
        ([0.0, 1e-3], [2.0, 2.0], 4.0, "lrs must be 2 or more distinct rates > 0"),
        ([1e-3, 1e-2], [2.0], 4.0, r"losses must be one per rate, \(2,\); got \(1,\)"),
        ([1e-3, 1e-2], [2.0, 3.0], math.nan, "initial_loss must be finite; got nan"),
    ],
)
def test_lr_sensitivity_refuses(lrs, losses, initial, message):
    with pytest.raises(ValueError, match=message):
        lr_sensitivity(lrs, losses, initial)


def early(*losses, **signals):
    """A run of 60 steps that starts with these losses and ends at 2.5; chance is 4, the floor 2."""
    loss_S = np.full(60, 2.5)
    loss_S[: len(losses)] = losses
    config = {"chance_nats": 4.0, "floor_nats": 2.0}
    return Trace(steps=range(60), signals={"loss_nats": [loss_S]} | signals, runs=[{}], config=config)


def test_verdict_of_a_run_that_leaves_in_its_first_steps_is_not_healthy():
    found = verdict(early(4.1, 30.0, 171.0, 60.0, 9.0), 0)
    assert (found.kind, found.step) == ("spiked", 2)
    assert found.evidence == "loss rose from 4.1 to 171 nats in its first 20 values, and came back"
    assert verdict(early(4.1, 30.0, 171.0, *np.linspace(120.0, 100.0, 57)), 0).kind == "diverged"


@pytest.mark.parametrize(("highest", "kind"), [(6.0, "healthy"), (6.2, "spiked")])
def test_verdict_of_early_scatter_is_healthy_up_to_the_whole_way_above_the_start(highest, kind):
    # The start is the first loss, 4.1, and the way from chance to the floor 2 nats.
    assert verdict(early(4.1, highest), 0).kind == kind


def test_verdict_says_what_it_could_not_see():
    whole = verdict(early(4.1, grad_norm_preclip=np.ones((1, 60))), 0).unseen
    assert len(whole) == 1
    assert "another rate, seed or more steps" in whole[0]
    few = Trace(steps=range(0, 100, 10), signals={"loss_nats": [np.linspace(4, 2, 10)]}, runs=[{}])
    assert [phrase.split(",")[0].split(":")[0].split(" (")[0] for phrase in verdict(few, 0).unseen] == [
        "what happened between logged steps",
        "a spike lower than 100% of the way",
        "the gradient",
        "how far this is from guessing",
        "whether another rate",
    ]
