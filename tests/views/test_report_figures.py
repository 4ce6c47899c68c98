"""Curves of real runs beside each other: each with its own steps, sparse signals joined, events marked."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import curve_points, new_figure
from stabviz.views.report_figures import (
    MOST_LAYER_PICTURES,
    layers_of,
    mark_events,
    plot_learning,
    plot_runs,
    report_figures,
)


def make(S=101, seed=0, *, every=10, events=(), **signals):
    """One run: loss and gradient norm at each step, the update every few, a validation score every 25."""
    rng = np.random.default_rng(seed)
    steps = np.arange(S)
    norm = np.exp(rng.normal(0, 0.3, S))
    own = {
        "loss_nats": 2 * np.exp(-steps / 40) + rng.normal(0, 0.01, S) + 0.3,
        "grad_norm_preclip": norm,
        "grad_norm_preclip/layer0": 0.5 * norm,
        "grad_norm_preclip/head": 2 * norm,
        "lr": 1e-3 * (1 - steps / S),
        "update_rms": np.where(steps % every == 0, 1.0 + steps / S, math.nan),
        "validation_loss_nats": np.where(steps % 25 == 24, 0.5 + 1 / (1 + steps), math.nan),
        "validation_score": np.where(steps % 25 == 24, np.sin(steps / 40), math.nan),
    } | signals
    return Trace(
        steps=steps,
        signals={name: np.array([values]) for name, values in own.items() if values is not None},
        runs=[{"seed": seed}],
        config={"clip_norm": 1.0},
        events=[{"run": 0, **event} for event in events],
    )


def drawn(draw, traces, **options):
    figure = new_figure(560, 250)
    axes = figure.subplots()
    assert draw(axes, traces, **options) is axes
    return figure, axes


def gids(axes):
    return [line.get_gid() for line in axes.lines if line.get_gid()]


def test_plot_runs_draws_each_run_at_its_own_steps():
    figure, axes = drawn(plot_runs, [make(S=101), make(S=53, every=5)], signal="update_rms", log=True)
    assert curve_points(figure, "curve-update_rms-0")[0].tolist() == list(range(0, 101, 10))
    x, y = curve_points(figure, "curve-update_rms-1")
    assert x.tolist() == list(range(0, 53, 5))
    assert np.allclose(y, 1 + x / 53)
    assert axes.get_yscale() == "log"
    assert axes.get_xlim()[1] >= 100
    colours = [line.get_color() for line in axes.lines]
    assert len(set(colours)) == 2


def test_plot_runs_passes_over_a_run_without_the_signal():
    _, axes = drawn(plot_runs, [make(update_rms=None), make()], signal="update_rms")
    assert gids(axes) == ["curve-update_rms-1"]


def test_plot_runs_rings_the_best_evaluation():
    figure, _ = drawn(plot_runs, [make()], signal="validation_score", best=True)
    x, y = curve_points(figure, "best-validation_score-0")
    assert (x.tolist(), y.tolist()) == ([74.0], [math.sin(74 / 40)])


def test_plot_learning_shows_every_step_its_median_and_the_evaluations():
    trace = make()
    figure, axes = drawn(plot_learning, [trace])
    assert np.array_equal(curve_points(figure, "curve-loss_nats-0")[1], trace["loss_nats"][0])
    smooth = curve_points(figure, "smooth-loss_nats-0")[1]
    assert smooth[50] == np.median(trace["loss_nats"][0, 47:54])
    assert curve_points(figure, "curve-validation_loss_nats-0")[0].tolist() == [24, 49, 74, 99]
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["each step", "median of 7 steps", "validation"]


def test_plot_learning_marks_where_the_loss_was_lost_and_shows_a_spike():
    loss = np.full(101, 1.0)
    loss[60], loss[30] = 40.0, math.nan
    figure, axes = drawn(plot_learning, [make(loss_nats=loss)])
    assert axes.get_yscale() == "log"
    assert np.nanmax(curve_points(figure, "curve-loss_nats-0")[1]) == 40.0
    assert axes.get_ylim()[1] > 40
    assert curve_points(figure, "nonfinite-loss_nats-0")[0].tolist() == [30]


def test_plot_learning_stops_where_the_run_died():
    loss = make()["loss_nats"][0].copy()
    loss[70:] = math.nan
    figure, _ = drawn(plot_learning, [make(loss_nats=loss)])
    for gid in ("curve-loss_nats-0", "smooth-loss_nats-0"):
        x, y = curve_points(figure, gid)
        assert x[np.isfinite(y)].max() == 69
    assert curve_points(figure, "nonfinite-loss_nats-0")[0].tolist() == [70]


def test_mark_events_puts_each_kind_on_the_step_axis():
    events = [
        {"step": 7, "kind": "rewind"},
        {"step": 9, "kind": "rewind"},
        {"step": 11, "kind": "of its own"},
        {"step": 13, "kind": "non_finite"},
    ]
    figure, axes = drawn(mark_events, [make(), make(events=events)])
    assert gids(axes) == ["event-rewind-1", "event-other-1"]  # a non-finite step has its x in the curve
    assert curve_points(figure, "event-rewind-1")[0].tolist() == [7, 9]
    assert curve_points(figure, "event-other-1")[0].tolist() == [11]


def test_report_figures_draw_what_was_measured_and_nothing_else():
    titles = [one.title for one in report_figures([make()], ["a run"])]
    assert titles == [
        "Loss",
        "Score of the evaluations",
        "Gradient norm before clipping",
        "Learning rate",
        "Size of the update",
        "Gradient norm by layer",
    ]
    few = make(
        validation_score=None,
        update_rms=np.full(101, math.nan),
        lr=None,
        **{"grad_norm_preclip/layer0": None, "grad_norm_preclip/head": None},
    )
    assert layers_of(few) == []
    assert [one.title for one in report_figures([few], ["a run"])] == [
        "Loss",
        "Gradient norm before clipping",
    ]


def test_report_figures_draw_layers_of_the_first_runs_only():
    runs = [make(S=5) for _ in range(MOST_LAYER_PICTURES + 2)]
    titles = [one.title for one in report_figures(runs, [f"run {r}" for r in range(len(runs))])]
    layered = [title for title in titles if title.startswith("Gradient norm by layer")]
    assert layered == [f"Gradient norm by layer: run {r}" for r in range(MOST_LAYER_PICTURES)]


def test_report_figures_state_the_finding_in_figures():
    loss = np.linspace(3.0, 1.0, 11)
    norm = np.array([0.5] * 8 + [4.0, 2.0, 0.25])
    steps = np.arange(11)
    validation = np.where(steps % 5 == 4, np.abs(steps - 8.0) + 1, math.nan)  # 5 at step 4, 2 at step 9
    one = make(
        S=11,
        loss_nats=loss,
        grad_norm_preclip=norm,
        validation_loss_nats=validation,
        **{"grad_norm_preclip/layer0": norm, "grad_norm_preclip/head": 3 * norm},
    )
    found = {figure.title: figure.finding for figure in report_figures([one], ["a"])}
    assert found["Loss"] == (
        "Training loss: 3 at step 0, 1 at step 10; highest 3 at step 0. "
        "Validation loss: 5 at step 4, 2 at step 9; lowest 2 at step 9."
    )
    assert found["Gradient norm before clipping"] == (
        "Gradient norm before clipping: 0.5 at step 0, 0.25 at step 10; highest 4 at step 8. "
        "Above the threshold in 18% of the steps."
    )
    assert found["Gradient norm by layer"] == (
        "Median gradient norm by layer: largest in head, 1.5; smallest in layer0, 0.5, a factor of 3."
    )
    dead = make(S=11, loss_nats=np.r_[loss[:6], [math.nan] * 5], validation_loss_nats=None)
    both = {figure.title: figure.finding for figure in report_figures([one, dead], ["a", "b"])}
    assert both["Loss"].startswith(
        "Training loss: median of 2 runs 3 at first, 1.5 at last; at last lowest in a, 1, "
        "and highest in b, 2; b: not finite from step 6 on."
    )
    assert "Validation loss: median of 1 of 2 runs 5 at first, 2 at last." in both["Loss"]
    assert "not finite" not in both["Learning rate"]


def test_report_figures_refuse_a_trace_of_several_runs():
    two = Trace(steps=[0], signals={"loss_nats": [[1.0], [2.0]]}, runs=[{"seed": 0}, {"seed": 1}])
    with pytest.raises(ValueError, match="report_figures: each Trace must hold one run, .*; got 2 in 'mine'"):
        report_figures([two], ["mine"])


@pytest.mark.filterwarnings("error")
def test_report_figures_draw_a_run_that_never_was_finite():
    nothing = np.full(7, math.nan)
    trace = Trace(steps=range(7), runs=[{}], signals={"loss_nats": [nothing], "lr": [np.ones(7)]})
    assert [one.title for one in report_figures([trace], ["a"])] == ["Learning rate"]
    first = Trace(steps=range(7), runs=[{}], signals={"loss_nats": [np.r_[2.0, nothing[1:]]]})
    assert report_figures([first], ["a"])[0].finding.endswith("not finite from step 1 on.")
