"""Pictures of descent: optimizers side by side on one surface, sharpness against the edge of stability."""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabviz.trace import Trace
from stabviz.views.maps import plot_loss_surface
from stabviz.views.plots import plot_loss_fan
from stabviz.views.style import INK, curve_style, log_axis, style_axes


def plot_descents(
    figure: Figure,
    function: Callable,
    paths: Mapping[str, np.ndarray],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    lowest: float = 1e-6,
) -> Figure:
    """Draw paths over one surface, and beside it their heights against the step, on a logarithmic axis.

    Heights below `lowest` are drawn at it; a path that goes non-finite stops with an x.

    Shapes: each path (S, 2)
    Raises: ValueError for a path of another shape
    Lesson: 03-gradient-descent-to-adam

    >>> from stabviz.views import curve_points, new_figure
    >>> figure = plot_descents(new_figure(), lambda x, y: x**2 + y**2, {"a": np.ones((3, 2))},
    ...                        x_range=(-2, 2), y_range=(-2, 2))
    >>> curve_points(figure, "curve-height-a")[1].tolist()
    [2.0, 2.0, 2.0]
    """
    surface, race = figure.subplots(1, 2, width_ratios=(1, 1))
    plot_loss_surface(surface, function, paths, x_range=x_range, y_range=y_range, legend=False)
    style_axes(race, "step", "height above the minimum")
    heights = {name: np.asarray(function(*np.asarray(path, np.float64).T)) for name, path in paths.items()}
    start = max(float(height_S[0]) for height_S in heights.values())
    for index, (name, height_S) in enumerate(heights.items()):
        look, gid = curve_style(index), name.replace(" ", "_")
        # Ten times the start says that a run is leaving; its later heights would flatten all others.
        left = np.flatnonzero(~(height_S < 10 * start))
        stop = int(left[0]) if left.size else len(height_S)
        shown_S = np.clip(height_S[:stop], lowest, None)
        words = f"{name} (leaves at step {stop})" if left.size else name
        race.plot(np.arange(stop), shown_S, **look, linewidth=1.8, label=words, gid=f"curve-height-{gid}")
        if left.size:
            race.plot(
                stop, 10 * start, marker="x", markersize=9, color=look["color"], gid=f"nonfinite-height-{gid}"
            )
    race.set_ylim(lowest / 2, 20 * start)
    log_axis(race)
    race.legend(fontsize=8.5, loc="lower left", framealpha=0.9, edgecolor="none")
    return figure


def plot_sharpness(
    axes: Axes, trace: Trace, *, by: str | None = None, factor: float = 2.0, legend: bool = True
) -> Axes:
    """Draw sharpness over steps and the edge of stability, factor / learning rate, as the rate moves it.

    The factor is 2 for plain descent, and (2 + 2 beta1) / (1 - beta1) for Adam's preconditioned sharpness.

    Raises: ValueError if the trace holds no sharpness
    Source: Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484
    """
    names = [name for name in ("sharpness", "preconditioned_sharpness") if name in trace.signals]
    if not names:
        raise ValueError("plot_sharpness: trace must hold sharpness; got none. Train with sharpness=True")
    plot_loss_fan(axes, trace, by=by, signal=names[0], legend=False)
    for line in axes.lines if by is None else ():
        if str(line.get_gid()).startswith("curve-"):
            line.set_label(f"median of {len(trace.runs)} runs")
    for lr_S in np.unique(trace["lr"], axis=0):
        if np.isfinite(lr_S).all():
            axes.plot(
                trace.steps,
                factor / lr_S,
                color=INK,
                linestyle="--",
                linewidth=1.2,
                label=f"{factor:g} / learning rate",
                gid="level-edge",
            )
            break
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), min(high, 2.2 * factor / float(np.nanmin(trace["lr"]))))
    if legend:
        axes.legend(fontsize=8.5, loc="lower left", framealpha=0.9, edgecolor="none")
    return axes


def plot_edge(figure: Figure, traces: Mapping[str, Trace], *, highest: float = 1e3) -> Figure:
    """Draw the first trace's sharpness with its edge, and beside it the median loss of every trace by name.

    A loss that leaves upwards is drawn up to `highest`, and ends in an x there.

    Raises: ValueError if the first trace holds no sharpness
    Lesson: 03-gradient-descent-to-adam
    """
    left, right = figure.subplots(1, 2)
    plot_sharpness(left, next(iter(traces.values())))
    style_axes(right, "step", "loss")
    for index, (name, trace) in enumerate(traces.items()):
        look, gid = curve_style(index), name.replace(" ", "_")
        median_S = np.median(np.nan_to_num(trace["loss_nats"].astype(np.float64), nan=np.inf), axis=0)
        left_at = np.flatnonzero(~(median_S < highest))
        stop = int(left_at[0]) if left_at.size else len(median_S)
        right.plot(trace.steps[:stop], median_S[:stop], **look, linewidth=1.6, label=name, gid=f"curve-{gid}")
        if left_at.size:
            at, colour = (trace.steps[stop], highest), look["color"]
            right.plot(*at, marker="x", markersize=9, color=colour, clip_on=False, gid=f"nonfinite-{gid}")
    log_axis(right)
    right.set_ylim(top=highest)
    right.legend(fontsize=8.5, loc="upper left", framealpha=0.9, edgecolor="none")
    return figure
