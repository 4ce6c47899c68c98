"""Stability map, attention and loss surface: cells, weights and paths are those of the data."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import curve_points, new_figure, plot_attention, plot_loss_surface, plot_stability_map

S = 53
CURVES = {
    "healthy": np.linspace(4, 2.2, S),
    "stalled": np.full(S, 4.0),
    "diverged": np.r_[np.full(S - 2, 4.0), math.inf, math.nan],
    "spiked": np.linspace(4, 2.2, S) + 1.5 * (np.arange(S) == 41),
}


def axes_of(draw, *args, **options):
    axes = new_figure(700, 320).subplots()
    assert draw(axes, *args, **options) is axes
    return axes


def test_plot_stability_map_shows_the_most_frequent_and_of_equals_the_gravest():
    cells = {
        (1e-3, 2): ["healthy"] * 3,
        (1e-3, 5): ["healthy", "healthy", "stalled"],
        (1e-1, 2): ["stalled", "diverged"],
        (1e-1, 5): ["spiked"],
    }
    runs = [
        {"lr": lr, "width": width, "seed": s}
        for (lr, width), kinds in cells.items()
        for s in range(len(kinds))
    ]
    loss = [CURVES[kind] for kinds in cells.values() for kind in kinds]
    trace = Trace(
        steps=range(S), signals={"loss_nats": loss}, runs=runs, config={"chance_nats": 4.0, "floor_nats": 2.0}
    )
    axes = axes_of(plot_stability_map, trace)
    words = {text.get_position(): text.get_text() for text in axes.texts}
    assert words == {(0, 0): "✓ 3/3", (0, 1): "✓ 2/3", (1, 0): "✕ 1/2", (1, 1): "▲"}
    assert {patch.get_gid(): patch.get_facecolor() for patch in axes.patches}.keys() == {
        "cell-lr=0.001,width=2",
        "cell-lr=0.001,width=5",
        "cell-lr=0.1,width=2",
        "cell-lr=0.1,width=5",
    }
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "✓ healthy",
        "▲ spiked",
        "– stalled",
        "✕ diverged",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "width")


def test_plot_stability_map_needs_two_labels():
    trace = Trace(steps=[0], signals={"loss_nats": [[1.0]]}, runs=[{"lr": 1.0, "seed": 0}])
    with pytest.raises(ValueError, match=r"y must be a label besides 'lr'; got only \['lr', 'seed'\]"):
        axes_of(plot_stability_map, trace)


def test_plot_attention_puts_queries_in_rows_and_writes_small_maps():
    weights = np.random.default_rng(0).dirichlet(np.ones(5), 3)
    axes = axes_of(plot_attention, weights, queries=list("abc"), keys=list("vwxyz"))
    assert np.allclose(axes.images[0].get_array(), weights)
    assert {text.get_position(): text.get_text() for text in axes.texts}[4, 1] == f"{weights[1, 4]:.2f}"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list("abc")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # first query on top
    assert axes.figure.axes[1].get_ylabel() == "attention weight"


def test_plot_attention_leaves_out_what_may_not_be_attended():
    mask = np.tril(np.ones((13, 13), bool))
    axes = axes_of(plot_attention, np.full((13, 13), 0.5), mask_LM=mask)
    assert np.array_equal(~np.ma.getmaskarray(axes.images[0].get_array()), mask)
    assert not axes.texts
    axes_of(plot_attention, np.full((2, 3), np.nan))


def test_plot_attention_refuses_what_is_not_one_head():
    with pytest.raises(ValueError, match=r"weights_LM must have shape \(L, M\); got \(2, 3, 5\)"):
        axes_of(plot_attention, np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match="keys must hold 3 names; got 2"):
        axes_of(plot_attention, np.zeros((2, 3)), keys=["a", "b"])


def bowl(x, y):
    return x**2 + 3 * y**2


def test_plot_loss_surface_draws_paths_to_their_end_or_to_the_edge():
    steps = np.linspace(0, 1, 11)[:, None]
    paths = {
        "arrives": (1 - steps) * [-1.5, 1.0],
        "leaves": np.array([[-1.0, 0], [1, 0], [-1.5, 0], [5, 0], [0, 0]]),
        "nan": np.array([[1.0, 1.0], [math.nan, 0]]),
    }
    axes = axes_of(plot_loss_surface, bowl, paths, x_range=(-2, 2), y_range=(-1, 1))
    figure = axes.figure
    assert np.allclose(np.c_[curve_points(figure, "path-arrives")], paths["arrives"])
    assert np.c_[curve_points(figure, "path-leaves")].tolist() == paths["leaves"][:3].tolist()
    assert np.c_[curve_points(figure, "end-leaves")].tolist() == [[-1.5, 0]]
    markers = {line.get_gid(): line.get_marker() for line in axes.lines if line.get_gid()}
    assert (markers["end-arrives"], markers["end-leaves"], markers["end-nan"]) == ("*", "x", "x")
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["arrives", "leaves (left the picture at step 3)", "nan (left the picture at step 1)"]


def test_plot_loss_surface_refuses_a_path_of_another_shape():
    with pytest.raises(ValueError, match=r"paths\['p'\] must have shape \(S, 2\); got \(2, 3\)"):
        axes_of(plot_loss_surface, bowl, {"p": np.zeros((2, 3))}, x_range=(-1, 1), y_range=(-1, 1))
