"""The picture of what is found: ln 64 less the held-out loss, and levels that need no encoder."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import curve_points, new_figure, plot_found


def drawn(trace, **options):
    figure = new_figure()
    plot_found(figure.subplots(), trace, **options)
    return figure


def test_plot_found_draws_ln_64_less_the_loss_where_it_was_measured():
    loss_RS = np.full((3, 5), np.nan)
    loss_RS[:, 1], loss_RS[:, 4] = 4.0, [2.0, 3.0, 3.5]
    trace = Trace(
        steps=range(5), signals={"held_out_loss_nats": loss_RS}, runs=[{"seed": s} for s in range(3)]
    )
    steps, found = curve_points(
        drawn(trace, levels={"the label": 0.69, "raw counts": 3.0}), "curve-found-all"
    )
    assert steps.tolist() == [1, 4]
    assert found.tolist() == pytest.approx([math.log(64) - 4, math.log(64) - 3])


def test_plot_found_draws_levels_alone_before_the_first_measurement():
    trace = Trace(steps=[0], signals={"loss_nats": [[1.0]]}, runs=[{"seed": 0}])
    figure = drawn(trace, levels={"raw counts": 3.0})
    assert curve_points(figure, "level-raw_counts")[1].tolist() == [3.0, 3.0]
    assert figure.axes[0].get_ylim()[1] > 3
