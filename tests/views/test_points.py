"""Groups, quantiles and thinning: what every plot stands on."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views.points import (
    group_runs,
    measured,
    measured_columns,
    non_finite_marks,
    quantiles,
    running_median,
    thin,
    thin_band,
)


def trace_of(runs, S=3):
    return Trace(steps=range(S), signals={"loss_nats": np.ones((len(runs), S))}, runs=runs)


def test_group_runs_sorts_by_number_and_counts_seeds():
    trace = trace_of([{"lr": lr, "seed": s} for s in range(2) for lr in (1e-1, 3.0, 1e-3)])
    groups = group_runs(trace, None)
    assert [group.name for group in groups] == ["lr=0.001", "lr=0.1", "lr=3"]
    assert [group.runs for group in groups] == [(2, 5), (0, 3), (1, 4)]
    assert [group.size for group in groups] == ["2 seeds"] * 3
    assert group_runs(trace, "seed")[0].size == "3 runs"
    assert [group.name for group in group_runs(trace, ["seed", "lr"])][:2] == [
        "seed=0, lr=0.001",
        "seed=0, lr=0.1",
    ]
    assert [group.key for group in group_runs(trace_of([{"name": "a b"}]), None)] == ["name=a_b"]
    assert group_runs(trace, None, apart=("lr",))[0].name == "all runs"


def test_quantiles_agree_with_numpy_where_all_is_finite():
    values = np.random.default_rng(0).normal(size=(7, 11))
    assert np.array_equal(quantiles(values, [0.1, 0.5, 0.9]), np.quantile(values, [0.1, 0.5, 0.9], axis=0))


def test_quantiles_are_infinite_where_dead_runs_decide():
    for dtype in (np.float32, np.float64):
        values = np.array([[1.0], [2.0], [3.0], [math.nan], [math.inf]], dtype)
        assert quantiles(values, [0.1, 0.5, 0.7, 0.9])[:, 0].tolist() == pytest.approx(
            [1.4, 3, math.inf, math.inf]
        )


def test_thin_keeps_ends_and_extremes_of_every_stretch():
    rng = np.random.default_rng(1)
    y = rng.normal(size=7919)
    x = np.arange(7919)
    for at, value in ((0, 50.0), (4000, -60.0), (7918, 70.0), (1234, math.nan)):
        y[at] = value
    u, v = thin(x, y)
    assert len(u) <= 400
    assert np.all(np.diff(u) > 0)
    assert {0, 4000, 7918} <= set(u.tolist())
    assert np.nanmax(v) == 70
    assert thin(x[:400], y[:400])[0] is not None
    assert len(thin(x[:400], y[:400])[0]) == 400
    assert len(thin(x, np.full(7919, math.nan))[0]) <= 400


def test_thin_band_is_never_narrower_than_the_band():
    rng = np.random.default_rng(2)
    low, high = np.sort(rng.normal(size=(2, 997)), axis=0)
    x, thin_low, thin_high = thin_band(np.arange(997), low, high)
    assert len(x) == 400
    at = np.searchsorted(x, np.arange(997), side="right") - 1
    assert np.all(thin_low[at] <= low)
    assert np.all(thin_high[at] >= high)


def test_non_finite_marks_stand_where_each_stretch_begins():
    loss = np.array([[5.0, math.inf, 4.0, 3.0, math.nan, math.nan]])
    norm = np.array([[1.0, 1.0, 1.0, math.inf, math.nan, math.nan]])
    trace = Trace(steps=np.arange(6) * 7, signals={"loss_nats": loss, "grad_norm_preclip": norm}, runs=[{}])
    # the run died with its gradient at step 21, one column before its loss was lost
    assert non_finite_marks(trace, 0, "loss_nats") == [(7.0, 5.0), (21.0, 3.0)]
    assert non_finite_marks(trace, 0, "grad_norm_preclip") == [(21.0, 1.0)]


def sparse_trace(dead=None):
    """Loss at every step, the update at every third, a score at the last; what comes after `dead` was
    lost."""
    nan = math.nan
    signals = {
        "loss_nats": [5.0, nan, 4.0, 3.0, 2.0, 1.0, 1.0],
        "update_rms": [1.0, nan, nan, 2.0, nan, nan, 3.0],
        "validation_score": [nan, nan, nan, nan, nan, nan, 0.5],
        "max_attention_logit": [1.0, nan, nan, math.inf, nan, nan, 2.0],
    }
    signals = {name: np.array([values]) for name, values in signals.items()}
    for values in signals.values() if dead is not None else ():
        values[0, dead:] = nan
    return Trace(steps=np.arange(7) * 2, signals=signals, runs=[{}])


def test_measured_tells_what_was_lost_from_what_was_left_out():
    trace = sparse_trace()
    assert measured(trace, 0, "loss_nats").all()
    assert np.flatnonzero(measured(trace, 0, "update_rms")).tolist() == [0, 3, 6]
    assert np.flatnonzero(measured(trace, 0, "max_attention_logit")).tolist() == [
        0,
        3,
        6,
    ]  # infinity was measured
    steps, values = measured_columns(trace, "update_rms", [0])
    assert (steps.tolist(), values.tolist()) == ([0, 6, 12], [[1.0, 2.0, 3.0]])
    dead = sparse_trace(dead=4)
    assert np.flatnonzero(measured(dead, 0, "update_rms")).tolist() == [0, 3, 4]  # it died at index 4
    assert not measured(dead, 0, "validation_score").any()


def test_non_finite_marks_leave_out_what_nobody_measured():
    trace = sparse_trace()
    assert non_finite_marks(trace, 0, "loss_nats") == [(2.0, 5.0)]
    assert non_finite_marks(trace, 0, "update_rms") == []
    assert non_finite_marks(trace, 0, "max_attention_logit") == [(6.0, 1.0)]
    dead = sparse_trace(dead=4)
    assert non_finite_marks(dead, 0, "update_rms") == [(8.0, 2.0)]
    assert non_finite_marks(dead, 0, "validation_score") == []


def test_running_median_equals_the_median_of_each_window():
    values = np.random.default_rng(5).normal(size=101)
    values[[7, 8, 50]] = math.nan
    smooth = running_median(values, 9)
    for s in range(101):
        assert smooth[s] == pytest.approx(np.nanmedian(values[max(0, s - 4) : s + 5]))
    with_gaps = running_median(values, 9, gaps=True)
    assert np.flatnonzero(np.isnan(with_gaps)).tolist() == [7, 8, 50]
    assert np.isnan(running_median([math.inf, math.nan, math.inf], 3)).all()
