"""Scales of the axes of a Trace: what they span, where marks go, when they are logarithmic."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from stabviz.trace import Trace, signal_of
from stabviz.views.points import non_finite_marks
from stabviz.views.style import log_axis

LOG_SCALE_ABOVE = 3.0
"""A loss that rises to this many times its first value is drawn on a log axis: an axis cut would hide it."""


def set_limits(axes: Axes, edges=(), levels=()) -> None:
    """Set the y axis to lines, `edges` of bands yet to be drawn, and levels: nothing finite is cut."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    finite = np.concatenate([*drawn, *edges, np.array(levels, float)])
    # A value at or below 0 has no place on a log axis, and would make its limits NaN.
    finite = finite[np.isfinite(finite) & ((finite > 0) | (axes.get_yscale() == "linear"))]
    if not finite.size:
        finite = np.array([1.0, 10.0])
    low, high = float(finite.min()), float(finite.max())
    if axes.get_yscale() == "log":
        room = max((high / low) ** 0.08, 1.15)
        axes.set_ylim(low / room, high * room)
    else:
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def set_step_axis(axes: Axes, *traces: Trace) -> None:
    """Span the whole run, also while it grows: an axis that moves with the data cannot be read."""
    begun = [trace for trace in traces if trace.n_steps]
    if not begun:
        return
    # Steps count from 0: a run of n steps ends at n - 1. A bool or a text in a config is no number of steps.
    planned = [trace.config.get("steps") for trace in begun]
    first = min(int(trace.steps[0]) for trace in begun)
    last = max([int(trace.steps[-1]) for trace in begun] + [n - 1 for n in planned if type(n) is int])
    room = max(0.01 * (last - first), 0.5)
    axes.set_xlim(first - room, last + room)


def finish_axes(axes: Axes, *traces: Trace, log: bool, edges=(), levels=()) -> None:
    """Set the scales once all curves are drawn: the whole run, nothing finite cut, marks inside."""
    set_step_axis(axes, *traces)
    set_limits(axes, edges, levels)
    if log:
        log_axis(axes)
    keep_marks_inside(axes)


def mark_non_finite(axes: Axes, marks: list[tuple[float, float]], colour: str, gid: str) -> None:
    """Draw an x at each (step, value); `keep_marks_inside` gives those without a value their place."""
    if marks:
        x, y = zip(*marks, strict=True)
        mark: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2.2, "linestyle": "none"}
        axes.plot(x, y, **mark, color=colour, gid=gid, zorder=5, clip_on=False)


def mark_run(axes: Axes, trace: Trace, run: int, signal: str, colour: str, number: int | None = None) -> None:
    """Mark where a run's signal becomes non-finite; `number` is its gid's where each Trace is one run."""
    gid = f"nonfinite-{signal}-{run if number is None else number}"
    mark_non_finite(axes, non_finite_marks(trace, run, signal), colour, gid)


def keep_marks_inside(axes: Axes) -> None:
    """Move marks into the axes; a run that never was finite has no height of its own: it goes to the top."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        bottom, top = low * (high / low) ** 0.03, low * (high / low) ** 0.95
    else:
        bottom, top = low + 0.03 * (high - low), low + 0.95 * (high - low)
    for line in axes.lines:
        if (line.get_gid() or "").startswith("nonfinite-"):
            values = np.asarray(line.get_ydata(), float)
            line.set_ydata(np.clip(np.where(np.isfinite(values), values, top), bottom, top))


def or_gap(values_S):
    """Leave a gap in a curve where it is not finite: an infinity would draw a line to it."""
    return np.where(np.isfinite(values_S), values_S, np.nan)


def needs_log(values_RS) -> bool:
    """Whether a loss rises beyond LOG_SCALE_ABOVE times its start; never with values at or below 0."""
    finite = values_RS[np.isfinite(values_RS)]
    if not finite.size or finite.min() <= 0:
        return False
    first_R = values_RS[:, 0][np.isfinite(values_RS[:, 0])]
    return bool(first_R.size and finite.max() > LOG_SCALE_ABOVE * np.median(first_R))


def unit_label(trace: Trace, signal: str) -> str:
    """Axis label with the unit, which a task whose loss is no cross-entropy names itself as "loss_unit"."""
    known = signal_of(signal)
    unit = trace.config.get("loss_unit", known.unit) if signal == "loss_nats" else known.unit
    return f"{known.label} ({unit})" if unit else known.label
