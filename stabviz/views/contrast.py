"""What contrastive encoders find on passages they never saw, beside what needs no encoder."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes

from stabviz.trace import Trace
from stabviz.views.plots import plot_loss_fan
from stabviz.views.style import INK, style_axes

CANDIDATES = 64
"""Candidates of the held-out question of the lab's task "pairs"."""


def plot_found(axes: Axes, trace: Trace, *, levels: Mapping[str, float], legend: bool = True) -> Axes:
    """Draw the information found on held-out pairs, ln 64 less their loss, with levels that need no encoder.

    Before the first measurement only the levels are drawn.

    Units:  nats
    Lesson: 06-infonce

    >>> from stabviz.views import curve_points, new_figure
    >>> figure = new_figure()
    >>> trace = Trace(steps=[0, 1], signals={"held_out_loss_nats": [[4.0, 3.0]]}, runs=[{"seed": 0}])
    >>> axes = plot_found(figure.subplots(), trace, levels={"the label": 0.69})
    >>> curve_points(figure, "curve-found-all")[1].round(2).tolist()
    [0.16, 1.16]
    """
    style_axes(axes, "step", "found (nats)")
    if "held_out_loss_nats" in trace.signals:
        signals = {"found": math.log(CANDIDATES) - trace["held_out_loss_nats"]}
        found = Trace(steps=trace.steps, runs=trace.runs, signals=signals)
        plot_loss_fan(axes, found, signal="found", legend=legend)
    for name, value in levels.items():
        gid = f"level-{name.replace(' ', '_')}"
        axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)), gid=gid)
        axes.annotate(
            name,
            xy=(0.99, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    axes.set_ylabel("found (nats)")
    axes.set_ylim(-0.05, max([2.0, *levels.values()]) + 0.2)
    return axes
