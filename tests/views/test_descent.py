"""Descent in pictures: heights are those of the surface, and the edge moves with the learning rate."""

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import curve_points, new_figure, plot_descents, plot_edge, plot_sharpness


def bowl(x, y):
    return x**2 + y**2


def test_plot_descents_draws_heights_and_marks_where_a_path_leaves():
    paths = {"in": np.array([[2.0, 0], [1, 0], [0, 0]]), "out": np.array([[2.0, 0], [7, 0], [np.inf, 0]])}
    figure = plot_descents(new_figure(), bowl, paths, x_range=(-3, 3), y_range=(-3, 3), lowest=1e-3)
    assert curve_points(figure, "curve-height-in")[1].tolist() == [4, 1, 1e-3]
    assert curve_points(figure, "curve-height-out")[1].tolist() == [4]
    assert curve_points(figure, "nonfinite-height-out")[0].tolist() == [1]
    assert figure.axes[1].get_yscale() == "log"


def test_plot_sharpness_draws_the_edge_that_the_rate_sets():
    rates = np.array([[0.1, 0.1, 0.2, 0.2]] * 2)
    sharp = np.array([[5.0, np.nan, 8.0, np.nan]] * 2)
    runs = [{"seed": 0}, {"seed": 1}]
    signals = {"lr": rates, "sharpness": sharp, "loss_nats": np.ones((2, 4))}
    trace = Trace(config={}, steps=np.arange(4), signals=signals, runs=runs)
    lost = Trace(
        config={}, steps=np.arange(4), signals={"loss_nats": np.array([[1, 2, 1e9, np.inf]])}, runs=[{}]
    )
    both = plot_edge(new_figure(), {"net": trace, "its tangent": lost})
    assert curve_points(both, "curve-its_tangent")[1].tolist() == [1, 2]
    assert curve_points(both, "nonfinite-its_tangent")[0].tolist() == [2]
    assert curve_points(both, "curve-net")[1].tolist() == [1, 1, 1, 1]
    figure = new_figure()
    plot_sharpness(figure.subplots(), trace)
    np.testing.assert_allclose(curve_points(figure, "level-edge")[1], [20, 20, 10, 10])
    assert curve_points(figure, "curve-sharpness-all")[1].tolist() == [5, 8]
    assert "median of 2 runs" in [line.get_label() for line in figure.axes[0].lines]


def test_plot_sharpness_refuses_a_trace_without_it():
    trace = Trace(config={}, steps=np.arange(2), signals={"loss_nats": np.ones((1, 2))}, runs=[{"seed": 0}])
    with pytest.raises(ValueError, match="must hold sharpness"):
        plot_sharpness(new_figure().subplots(), trace)
