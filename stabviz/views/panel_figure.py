"""The figure of a panel: a Trace and a drawing function become SVG, and curves for a test."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from stabviz.trace import Trace
from stabviz.views.plots import plot_gradient_norm, plot_loss_fan
from stabviz.views.style import new_figure
from stabviz.views.svg import DRAWING, figure_svg
from stabviz.views.text import describe

WIDTH_PX = 720


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One Trace as it is shown."""

    trace: Trace
    svg: str
    curves: dict
    """{gid: (x, y)} of every curve that has a gid."""
    axes_positions: tuple
    """Where the axes stand, as shares of the figure."""


def picture(draw, trace: Trace, values: dict, height_px: int, positions: tuple | None = None) -> Picture:
    """Draw one Trace.

    To work out where axes stand takes longer than to draw them (140 of 250 ms for the default picture), so a
    growing run is drawn at the `positions` of an earlier picture of the same panel.
    """
    with DRAWING:  # measuring text, which lays axes out, is shared state of matplotlib as well
        figure = new_figure(WIDTH_PX, height_px)
        sentence = draw(figure, trace, values)
        if positions is not None and len(positions) == len(figure.axes):
            figure.set_layout_engine("none")  # it would move the axes again at savefig
            for axes, position in zip(figure.axes, positions, strict=True):
                axes.set_position(position)
        curves = {
            line.get_gid(): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
            for axes in figure.axes
            for line in axes.lines
            if line.get_gid()
        }
        svg = figure_svg(figure, sentence or describe(trace))
        positions = tuple(axes.get_position().bounds for axes in figure.axes)
    return Picture(trace=trace, svg=svg, curves=curves, axes_positions=positions)


def draw_training(figure: Figure, trace: Trace, values: dict) -> str:
    """Draw loss above gradient norm on one step axis, and the clip threshold where one is set."""
    if "grad_norm_preclip" not in trace:
        plot_loss_fan(figure.subplots(), trace)
        return describe(trace)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    plot_loss_fan(top, trace)
    clip_norm = values.get("clip_norm")
    is_threshold = isinstance(clip_norm, int | float) and not isinstance(clip_norm, bool)
    plot_gradient_norm(bottom, trace, clip_norm=clip_norm if is_threshold else None, legend=False)
    top.set_xlabel("")
    bottom.set_ylabel("gradient norm")
    return describe(trace)
