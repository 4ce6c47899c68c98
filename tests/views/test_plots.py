"""Plots over steps and learning rates: the drawn numbers are right, and nothing non-finite is hidden."""

import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from stabviz.trace import Trace
from stabviz.views import (
    curve_points,
    new_figure,
    plot_ablation,
    plot_gradient_norm,
    plot_layer_norms,
    plot_loss_fan,
    plot_lr_curve,
)

SEEDS, S = 5, 101
LRS = [1e-3, 1e-2, 1.0]


def make(S=S, dead=(), **config):
    """Three rates, five seeds; `dead` maps (lr, seed) to the step at which that run becomes infinite."""
    rng = np.random.default_rng(0)
    runs = [{"lr": lr, "seed": seed} for lr in LRS for seed in range(SEEDS)]
    loss = 2.5 + 1.5 * np.exp(-np.arange(S) / 20) + rng.normal(0, 0.05, (len(runs), S))
    norm = np.exp(rng.normal(0, 0.2, (len(runs), S)))
    for (lr, seed), step in dict(dead).items():
        r = runs.index({"lr": lr, "seed": seed})
        for values in (loss, norm):
            values[r, step], values[r, step + 1 :] = math.inf, math.nan
    return Trace(
        steps=range(S),
        runs=runs,
        signals={"loss_nats": loss, "grad_norm_preclip": norm},
        config={"chance_nats": 4.0, "floor_nats": 2.0} | config,
    )


def axes_of(draw, *args, **options):
    figure = new_figure(700, 320)
    axes = figure.subplots()
    assert draw(axes, *args, **options) is axes
    return figure, axes


def gids(axes):
    return [line.get_gid() for line in axes.lines if line.get_gid()]


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_plot_loss_fan_draws_the_median_over_seeds():
    trace = make()
    figure, axes = axes_of(plot_loss_fan, trace, by="lr")
    for lr in LRS:
        x, y = curve_points(figure, f"curve-loss_nats-lr={lr:g}")
        assert np.array_equal(x, trace.steps)
        assert np.allclose(y, np.median(trace.select(lr=lr)["loss_nats"], axis=0), rtol=1e-12)
    assert legend_texts(axes) == [f"lr={lr:g} (5 seeds)" for lr in LRS]
    assert axes.get_legend().get_title().get_text() == "line: median, band: 10–90 %"


def test_plot_loss_fan_draws_the_band_from_10_to_90_percent():
    trace = make().select(lr=1.0)
    _, axes = axes_of(plot_loss_fan, trace)
    band = next(
        c for c in axes.collections if c.get_gid() == "band-loss_nats-all" or "band" in (c.get_gid() or "")
    )
    corners = band.get_paths()[0].vertices
    expected = np.quantile(trace["loss_nats"], [0.1, 0.9], axis=0)
    for s in (0, 53, 100):
        drawn = corners[corners[:, 0] == s, 1]
        assert drawn.min() == pytest.approx(expected[0, s], rel=1e-12)
        assert drawn.max() == pytest.approx(expected[1, s], rel=1e-12)


def test_plot_loss_fan_counts_a_dead_run_as_the_worst():
    """Two of five dead: the median is the third best of five, not the middle of the three survivors."""
    trace = make(dead={(1.0, 0): 41, (1.0, 3): 67})
    figure, axes = axes_of(plot_loss_fan, trace, by="lr")
    _, y = curve_points(figure, "curve-loss_nats-lr=1")
    values = trace.select(lr=1.0)["loss_nats"]
    assert y[-1] == pytest.approx(np.nanmax(values[:, -1]), rel=1e-12)
    assert "lr=1 (5 seeds, 2 non-finite)" in legend_texts(axes)
    band = next(c for c in axes.collections if c.get_gid() == "band-loss_nats-lr=1")
    assert band.get_paths()[0].vertices[:, 1].max() == axes.get_ylim()[1]


def test_plot_loss_fan_marks_each_non_finite_run_inside_the_axes():
    dead = {(1.0, 0): 41, (1.0, 3): 67, (1e-2, 2): 0}
    trace = make(dead=dead)
    figure, axes = axes_of(plot_loss_fan, trace)
    low, high = axes.get_ylim()
    for (lr, seed), step in dead.items():
        x, y = curve_points(figure, f"nonfinite-loss_nats-{trace.runs.index({'lr': lr, 'seed': seed})}")
        assert x.tolist() == [step]
        assert low < y[0] < high
    assert sum(gid.startswith("nonfinite-") for gid in gids(axes)) == 3
    assert legend_texts(axes)[-1] == "went non-finite"
    assert next(line for line in axes.lines if line.get_gid() == "nonfinite-loss_nats-10").get_marker() == "x"


def test_plot_loss_fan_marks_a_skipped_step_of_a_run_that_lives():
    loss = make().select(lr=1.0)["loss_nats"].copy()
    loss[2, 31] = math.nan
    trace = Trace(steps=range(S), signals={"loss_nats": loss}, runs=[{"seed": r} for r in range(SEEDS)])
    figure, axes = axes_of(plot_loss_fan, trace)
    assert curve_points(figure, "nonfinite-loss_nats-2")[0].tolist() == [31]
    assert legend_texts(axes)[0] == "5 seeds"


def test_plot_loss_fan_cuts_nothing_finite_off():
    loss = make()["loss_nats"].copy()
    loss[7, 77] = 90.0
    trace = Trace(steps=range(S), signals={"loss_nats": loss}, runs=[{"run": r} for r in range(len(loss))])
    _, axes = axes_of(plot_loss_fan, trace)
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < loss.min()
    assert axes.get_ylim()[1] > 90
    assert axes_of(plot_loss_fan, make())[1].get_yscale() == "linear"


def test_plot_loss_fan_draws_the_levels_of_the_task_or_those_given():
    figure, axes = axes_of(plot_loss_fan, make())
    assert set(curve_points(figure, "level-chance")[1]) == {4.0}
    assert set(curve_points(figure, "level-floor")[1]) == {2.0}
    assert {text.get_text() for text in axes.texts} == {"chance 4", "floor 2"}
    figure, axes = axes_of(plot_loss_fan, make(), chance=math.nan, floor=1.5)
    assert set(curve_points(figure, "level-floor")[1]) == {1.5}
    assert "level-chance" not in gids(axes)
    assert axes.get_ylim()[0] < 1.5


def test_plot_loss_fan_names_units_and_keeps_the_planned_step_axis():
    _, axes = axes_of(plot_loss_fan, make(S=11, steps=101))
    assert axes.get_ylabel() == "loss (nats)"
    assert axes.get_xlabel() == "step"
    assert axes.get_xlim() == (-1, 101)
    assert axes_of(plot_loss_fan, make(loss_unit="squared error"))[1].get_ylabel() == "loss (squared error)"


def test_plot_loss_fan_thins_long_curves_and_keeps_the_spike():
    loss = np.linspace(4, 2, 9973)
    loss[5003] = 11.0
    trace = Trace(steps=range(9973), signals={"loss_nats": [loss]}, runs=[{}])
    x, y = curve_points(axes_of(plot_loss_fan, trace)[0], "curve-loss_nats-all")
    assert len(x) <= 400
    assert (x[y.argmax()], y.max()) == (5003, 11.0)
    assert (x[0], x[-1]) == (0, 9972)


def test_plot_loss_fan_gives_curves_unlike_colours_and_line_styles():
    runs = [{"width": width} for width in range(2, 25)]
    trace = Trace(steps=range(3), signals={"loss_nats": np.ones((23, 3))}, runs=runs)
    _, axes = axes_of(plot_loss_fan, trace)
    curves = [line for line in axes.lines if line.get_gid().startswith("curve-")]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in curves}
    assert len(curves) == len(looks) == len({line.get_gid() for line in curves}) == 23


def test_plot_loss_fan_draws_traces_without_steps_or_with_one_or_all_dead():
    nothing = Trace(steps=[], signals={"loss_nats": np.ones((2, 0))}, runs=[{}, {}])
    one = Trace(steps=[0], signals={"loss_nats": [[3.0], [4.0]]}, runs=[{}, {}])
    dead = Trace(steps=[0, 1], signals={"loss_nats": np.full((2, 2), math.nan)}, runs=[{}, {}])
    for trace in (nothing, one, dead):
        figure, axes = axes_of(plot_loss_fan, trace)
        figure.savefig("/dev/null", format="svg")
        assert np.isfinite(axes.get_ylim()).all()
    low, high = axes.get_ylim()
    assert low < curve_points(figure, "nonfinite-loss_nats-1")[1][0] < high


def test_plot_loss_fan_keeps_the_legend_off_the_curves():
    def beside(values):
        trace = Trace(steps=range(S), signals={"loss_nats": [values]}, runs=[{}], config={"chance_nats": 4.0})
        figure, axes = axes_of(plot_loss_fan, trace)
        figure.draw_without_rendering()
        box = axes.get_legend().get_window_extent()
        return box.x0 >= axes.get_window_extent().x1

    assert not beside(np.linspace(4, 2, S))
    assert beside(np.linspace(4, 3.9, S) + 1.0 * (np.arange(S) == 3) - 1.5 * (np.arange(S) == 5))


def test_plot_loss_fan_refuses_an_unknown_label():
    with pytest.raises(ValueError, match=r"by must be among the labels \['lr', 'seed'\]; got 'width'"):
        axes_of(plot_loss_fan, make(), by="width")


def test_plot_gradient_norm_is_logarithmic_with_the_threshold_drawn():
    figure, axes = axes_of(plot_gradient_norm, make(clip_norm=0.3, dead={(1.0, 4): 13}))
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "gradient norm before clipping"
    assert set(curve_points(figure, "level-clip")[1]) == {0.3}
    assert axes.get_ylim()[0] < 0.3
    assert "clip at 0.3" in [text.get_text() for text in axes.texts]
    assert curve_points(figure, "nonfinite-grad_norm_preclip-14")[0].tolist() == [13]


def test_plot_gradient_norm_draws_no_threshold_that_is_off():
    for clip_norm in (math.inf, math.nan):
        assert "level-clip" not in gids(axes_of(plot_gradient_norm, make(), clip_norm=clip_norm)[1])
    with pytest.raises(ValueError, match=r"clip_norm must be above 0 \(inf = off\); got -1"):
        axes_of(plot_gradient_norm, make(), clip_norm=-1)


def test_plot_lr_curve_draws_final_medians_and_the_sensitivity():
    runs = [{"lr": lr, "qk": qk, "seed": s} for lr in LRS for qk in (True, False) for s in range(3)]
    final = {
        (1e-3, True): 3.0,
        (1e-2, True): 2.0,
        (1.0, True): 2.5,
        (1e-3, False): 3.0,
        (1e-2, False): 2.0,
        (1.0, False): math.nan,
    }
    loss = np.array([[4.0] + [final[run["lr"], run["qk"]] + 0.1 * (run["seed"] - 1)] * 10 for run in runs])
    trace = Trace(steps=range(11), signals={"loss_nats": loss}, runs=runs)
    figure, axes = axes_of(plot_lr_curve, trace)
    x, y = curve_points(figure, "curve-loss_nats-final-qk=True")
    assert np.allclose(x, LRS)
    assert np.allclose(y, [3, 2, 2.5])
    # non-finite runs at the initial loss: (1 + 0 + 2) / 3
    assert legend_texts(axes)[:2] == ["qk=False, LR sensitivity 1", "qk=True, LR sensitivity 0.5"]
    assert [a.tolist() for a in curve_points(figure, "nonfinite-loss_nats-final-qk=False")] == [[1.0], [4.0]]
    assert "nonfinite-loss_nats-final-qk=True" not in gids(axes)
    assert curve_points(figure, "best-qk=True")[0].tolist() == [1e-2]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == (
        "log",
        "learning rate",
        "final loss (nats)",
    )


def test_plot_lr_curve_needs_the_label():
    with pytest.raises(ValueError, match="key must be one of .*; got 'lr'"):
        axes_of(plot_lr_curve, Trace(steps=[0], signals={"loss_nats": [[1.0]]}, runs=[{"seed": 0}]))


def test_plot_layer_norms_draws_a_line_per_layer():
    norm = np.exp(np.random.default_rng(1).normal(size=(3, 2, 7)))
    layers = ["embedding", "block0", "head"]
    trace = Trace(
        steps=range(7),
        runs=[{"seed": 0}, {"seed": 1}],
        signals={f"grad_norm_preclip/{layer}": values for layer, values in zip(layers, norm, strict=True)},
    )
    figure, axes = axes_of(plot_layer_norms, trace)
    assert legend_texts(axes) == layers
    assert np.allclose(curve_points(figure, "curve-grad_norm_preclip/block0")[1], np.median(norm[1], axis=0))
    figure, _ = axes_of(plot_layer_norms, trace, run=1)
    assert np.allclose(curve_points(figure, "curve-grad_norm_preclip/head")[1], norm[2, 1])
    with pytest.raises(ValueError, match="must be recorded by layer as 'param_norm/<layer>'"):
        axes_of(plot_layer_norms, trace, signal="param_norm")


def test_plots_join_the_measured_points_of_a_sparse_signal():
    nan = math.nan
    update = [[1.0, nan, nan, 4.0, nan], [3.0, nan, nan, 8.0, nan]]
    layer = [[1.0, nan, 2.0, nan, 3.0], [3.0, nan, 4.0, nan, 5.0]]
    trace = Trace(
        steps=range(5),
        runs=[{"seed": 0}, {"seed": 1}],
        signals={"loss_nats": np.ones((2, 5)), "update_rms": update, "update_rms/block0": layer},
    )
    figure, axes = axes_of(plot_loss_fan, trace, signal="update_rms")
    x, y = curve_points(figure, "curve-update_rms-all")
    assert (x.tolist(), y.tolist()) == ([0, 3], [2.0, 6.0])
    figure, layer_axes = axes_of(plot_layer_norms, trace, signal="update_rms")
    x, y = curve_points(figure, "curve-update_rms/block0")
    assert (x.tolist(), y.tolist()) == ([0, 2, 4], [2.0, 3.0, 4.0])
    assert not [gid for gid in gids(axes) + gids(layer_axes) if gid.startswith("nonfinite-")]


def test_plot_layer_norms_takes_a_running_median_and_leaves_gaps():
    norm = np.array([[1.0, 9.0, 2.0, math.nan, 4.0]])
    trace = Trace(
        steps=range(5),
        runs=[{}],
        signals={
            "grad_norm_preclip": norm,
            "grad_norm_preclip/a$b$": np.where(np.isnan(norm), math.inf, norm),
        },
    )
    figure, axes = axes_of(plot_layer_norms, trace, run=0, median_of=3)
    y = curve_points(figure, "curve-grad_norm_preclip/a$b$")[1]
    assert np.array_equal(y, [5.0, 2.0, 5.5, math.nan, 4.0], equal_nan=True)
    assert legend_texts(axes)[0] == r"a\$b\$"  # drawn as a$b$, not as a formula


def test_new_figure_is_white_and_knows_no_pyplot():
    figure = new_figure(700, 320)
    assert isinstance(figure, Figure)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    plot_loss_fan(figure.subplots(), make())
    for name, module in list(sys.modules.items()):
        if name.startswith("stabviz.views"):
            assert not hasattr(module, "plt"), name
            assert "pyplot" not in vars(module), name


@pytest.mark.filterwarnings("error")
def test_plot_loss_fan_leaves_out_a_floor_of_zero_where_the_axis_is_logarithmic():
    trace = Trace(
        steps=range(3),
        signals={"loss_nats": [[1.0, 50.0, 0.5]]},
        runs=[{"seed": 0}],
        config={"floor_nats": 0.0},
    )
    axes = plot_loss_fan(new_figure().subplots(), trace)
    assert axes.get_yscale() == "log"
    assert "level-floor" not in {line.get_gid() for line in axes.lines}


def ablation_row(name, share, low, high):
    return {"run": name, "share": share, "share low": low, "share high": high, "final loss": 2.0}


def test_plot_ablation_draws_each_share_with_its_interval_from_top_to_bottom():
    rows = [ablation_row("broken", 0.0, 0.0, 0.0), ablation_row("half", 0.5, -0.25, 1.5)]
    figure, axes = axes_of(plot_ablation, rows)
    shares, places = zip(*(curve_points(figure, f"share-{row['run']}") for row in rows), strict=True)
    assert [x.tolist() for x in shares] == [[0.0], [50.0]]
    assert curve_points(figure, "interval-half")[0].tolist() == [-25.0, 150.0]
    assert places[0] < places[1]
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["broken", "half"]
    assert axes.get_xlim()[0] < -25
    assert axes.get_xlim()[1] > 150


def test_plot_ablation_marks_what_made_it_infinitely_worse_at_the_left_edge():
    figure, axes = axes_of(plot_ablation, [ablation_row("too fast", -math.inf, -math.inf, 0.5)])
    left = axes.get_xlim()[0]
    assert "share-too fast" not in gids(axes)
    assert curve_points(figure, "nonfinite-share-too fast")[0].tolist() == [left]
    assert curve_points(figure, "interval-too fast")[0].tolist() == [left, 50.0]


@pytest.mark.parametrize("rows", [[], [{"run": "a", "share": 1.0}]])
def test_plot_ablation_refuses_rows_without_a_share(rows):
    with pytest.raises(ValueError, match="plot_ablation: rows must be dicts with .* got"):
        plot_ablation(new_figure().subplots(), rows)
