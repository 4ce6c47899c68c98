"""Plots of Traces over steps and learning rates: Axes in, Axes out; data first, the rest by keyword.

Every curve has a gid, for example "curve-loss_nats-lr=0.001": the same on every machine, found in the SVG.
A run that goes non-finite is marked with an x where it did so, inside the axes. Nothing here knows pyplot.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from stabviz.trace import Trace, lr_sensitivity, signal_of
from stabviz.views.points import (
    Group,
    group_runs,
    measured_columns,
    quantiles,
    running_median,
    thin,
    thin_band,
)
from stabviz.views.scales import (
    finish_axes,
    keep_marks_inside,
    mark_non_finite,
    mark_run,
    needs_log,
    or_gap,
    set_step_axis,
    unit_label,
)
from stabviz.views.style import (
    INK,
    clip_levels,
    curve_style,
    is_finite,
    log_axis,
    place_legend,
    ring,
    style_axes,
    task_levels,
)


def plot_loss_fan(
    axes: Axes,
    trace: Trace,
    *,
    by: str | Sequence[str] | None = None,
    signal: str = "loss_nats",
    chance: float | None = None,
    floor: float | None = None,
    legend: bool = True,
) -> Axes:
    """Draw median and 10-90 % band over the runs of each value of `by`, and where runs went non-finite.

    A dead run counts as the worst, not as absent: the band then reaches the top of the axes. `by` None means
    every label but the seed. `chance` and `floor` default to the task's; NaN draws no line. The axis becomes
    logarithmic where the loss rises beyond LOG_SCALE_ABOVE times its start.

    Units:  chance and floor in the unit of the signal
    Raises: ValueError if `by` is no label
    Lesson: 00-start-here

    >>> from stabviz.views import curve_points, new_figure
    >>> figure = new_figure()
    >>> trace = Trace(steps=[0, 1], signals={"loss_nats": [[4.0, 2.0], [4.0, 3.0]]},
    ...               runs=[{"seed": 0}, {"seed": 1}])
    >>> axes = plot_loss_fan(figure.subplots(), trace)
    >>> curve_points(figure, "curve-loss_nats-all")[1].tolist()
    [4.0, 2.5]
    """
    style_axes(axes, "step", unit_label(trace, signal))
    is_loss = signal == "loss_nats"
    log = is_loss and needs_log(trace[signal])
    floor = trace.config.get("floor_nats") if floor is None else floor
    if log and floor is not None and floor <= 0:
        floor = float("nan")  # a logarithmic axis has no place for it
    levels = task_levels(axes, trace, chance, floor) if is_loss else []
    _draw_fan(axes, trace, signal, group_runs(trace, by), levels, log=log)
    if legend:
        place_legend(axes)
    return axes


def plot_gradient_norm(
    axes: Axes,
    trace: Trace,
    *,
    by: str | Sequence[str] | None = None,
    clip_norm: float | None = None,
    signal: str = "grad_norm_preclip",
    legend: bool = True,
) -> Axes:
    """Draw the gradient norm before clipping on a log axis, with the clip threshold and non-finite steps.

    `clip_norm` defaults to "clip_norm" of the configuration; infinity or NaN draws no line.

    Raises: ValueError if clip_norm is not above 0
    Lesson: 04-gradient-clipping
    """
    style_axes(axes, "step", signal_of(signal).axis_label)
    clip_norm = trace.config.get("clip_norm") if clip_norm is None else clip_norm
    if is_finite(clip_norm) and clip_norm <= 0:
        raise ValueError(f"plot_gradient_norm: clip_norm must be above 0 (inf = off); got {clip_norm!r}")
    levels = clip_levels(axes, [clip_norm])
    _draw_fan(axes, trace, signal, group_runs(trace, by), levels, log=True)
    if legend:
        place_legend(axes)
    return axes


def plot_lr_curve(
    axes: Axes,
    trace: Trace,
    *,
    by: str | Sequence[str] | None = None,
    signal: str = "loss_nats",
    chance: float | None = None,
    floor: float | None = None,
    legend: bool = True,
) -> Axes:
    """Draw final loss against learning rate: median over seeds, 10-90 % as bars, LR sensitivity as text.

    A final loss above the initial one, or none at all, is drawn as x at the initial loss: the value that LR
    sensitivity gives it. The best rate of each curve is ringed.

    Raises: ValueError if the runs carry no label "lr"
    Source: the curves of loss against learning rate of Wortsman et al. 2023, arXiv:2309.14322
    Lesson: 05-schedules
    """
    lr_R = trace.labels("lr").astype(float)
    start_R = trace[signal][:, 0].astype(np.float64)
    cap = float(np.median(start_R[np.isfinite(start_R)])) if np.isfinite(start_R).any() else 1.0
    style_axes(axes, "learning rate", f"final {unit_label(trace, signal)}")
    axes.set_xscale("log")
    if signal == "loss_nats":
        task_levels(axes, trace, chance, floor, left=True)
    final_R = trace.final(signal)
    for index, group in enumerate(group_runs(trace, by, apart=("lr",))):
        _lr_group(axes, group, index, lr_R, final_R, cap, signal)
    axes.margins(x=0.06, y=0.14)
    if legend:
        place_legend(axes, loc="upper center", mark="diverged: drawn at the initial loss")
    return axes


def plot_layer_norms(
    axes: Axes,
    trace: Trace,
    *,
    signal: str = "grad_norm_preclip",
    run: int | None = None,
    median_of: int = 1,
    legend: bool = True,
) -> Axes:
    """Draw a signal layer by layer on a log axis: median over runs, or one `run`.

    With `median_of` steps a running median is drawn: the noise of many layers on one another hides them all.

    Raises: ValueError if the trace has no "<signal>/<layer>"
    Lesson: 07-transformer
    """
    names = [name for name in trace.signals if name.startswith(f"{signal}/")]
    if not names:
        wanted = f"be recorded by layer as '{signal}/<layer>'"
        raise ValueError(f"plot_layer_norms: signal must {wanted}; got {sorted(trace.signals)}")
    style_axes(axes, "step", signal_of(signal).axis_label)
    axes.set_yscale("log", nonpositive="mask")
    runs = list(range(trace.n_runs)) if run is None else [run]
    for index, name in enumerate(names):
        steps, values_RS = measured_columns(trace, name, runs)
        median_S = or_gap(quantiles(values_RS, [0.5])[0])
        x, y = thin(steps, running_median(median_S, median_of, gaps=True))
        label = name.partition("/")[2].replace("$", r"\$")  # a layer's name is text, not a formula
        axes.plot(x, y, **curve_style(index), linewidth=1.6, label=label, gid=f"curve-{name}")
        for r in runs:
            mark_run(axes, trace, r, name, curve_style(index)["color"])
    set_step_axis(axes, trace)
    log_axis(axes)
    keep_marks_inside(axes)
    if legend:
        place_legend(axes, "layer" if len(runs) == 1 else f"layer (median of {len(runs)} runs)")
    return axes


def plot_ablation(axes: Axes, rows: Sequence[dict]) -> Axes:
    """Draw for each row of an ablation the share of the gap that it explains, with its interval.

    Rows stand from top to bottom in their order. A share of -inf (a run that diverges where the broken one
    does not) is an x at the left edge, and so is the end of an interval that reaches there.

    Units:  share 1 is the whole gap; drawn in %
    Raises: ValueError if there is no row, or a row lacks "run", "share", "share low" or "share high"

    >>> from stabviz.views import curve_points, new_figure
    >>> figure = new_figure()
    >>> row = {"run": "warm-up", "share": 0.5, "share low": 0.25, "share high": 1.0}
    >>> axes = plot_ablation(figure.subplots(), [row])
    >>> [curve_points(figure, f"{name}-warm-up")[0].tolist() for name in ("share", "interval")]
    [[50.0], [25.0, 100.0]]
    """
    names = ("run", "share", "share low", "share high")
    if not rows or any(name not in row for row in rows for name in names):
        raise ValueError(f"plot_ablation: rows must be dicts with {names}, one or more; got {list(rows)!r}")
    style_axes(axes, "share of the gap explained (%)", "")
    shares = 100 * np.array([[row[name] for name in names[1:]] for row in rows], dtype=float)
    finite = shares[np.isfinite(shares)]
    low, high = min(0.0, finite.min(initial=0.0)), max(100.0, finite.max(initial=100.0))
    edges = low - 0.08 * (high - low), high + 0.08 * (high - low)
    for value, words in ((0.0, "nothing"), (100.0, "all of it")):
        axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)), gid=f"level-{words}")
    for place, (row, (share, share_low, share_high)) in enumerate(zip(rows, shares, strict=True)):
        colour, name = curve_style(place)["color"], row["run"]
        ends = np.clip([share_low, share_high], *edges)
        axes.plot(ends, [place, place], color=colour, linewidth=3, alpha=0.45, gid=f"interval-{name}")
        if np.isfinite(share):
            axes.plot([share], [place], marker="o", markersize=6, color=colour, gid=f"share-{name}")
        else:
            mark_non_finite(axes, [(float(np.clip(share, *edges)), place)], colour, f"nonfinite-share-{name}")
    axes.set_xlim(*edges)
    axes.set_yticks(range(len(rows)), [str(row["run"]).replace("$", r"\$") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    return axes


def _draw_fan(axes: Axes, trace: Trace, signal: str, groups: list[Group], levels, *, log: bool) -> None:
    axes.set_yscale("log" if log else "linear")
    bands = []
    for index, group in enumerate(groups):
        line_style = curve_style(index)
        runs = list(group.runs)
        steps, values_RS = measured_columns(trace, signal, runs)
        if len(groups) == 1 and 1 < len(runs) <= 16:
            for r, values_S in zip(runs, values_RS, strict=True):  # one group: there is room for each spike
                x, y = thin(steps, or_gap(values_S))
                axes.plot(x, y, color=line_style["color"], alpha=0.35, linewidth=0.7, gid=f"run-{signal}-{r}")
        low_S, median_S, high_S = quantiles(values_RS, [0.1, 0.5, 0.9])
        if len(runs) > 1:
            bands.append((index, group, steps, low_S, high_S))
        x, y = thin(steps, or_gap(median_S))
        dots: dict[str, Any] = {"marker": "o" if len(steps) == 1 else None, "markersize": 4}
        label, gid = _name_of(trace, group), f"curve-{signal}-{group.key}"
        axes.plot(x, y, **line_style, **dots, linewidth=1.8, label=label, gid=gid, zorder=3)
        for r in runs:
            mark_run(axes, trace, r, signal, line_style["color"])
    finish_axes(
        axes, trace, log=log, edges=[edge for *_, low, high in bands for edge in (low, high)], levels=levels
    )
    # a band of dead runs reaches to infinity: it is cut at the top of the axes, which are set by now
    for index, group, steps, low_S, high_S in bands:
        x, low, high = thin_band(steps, low_S, high_S)
        top = axes.get_ylim()[1]
        low, high, colour = np.minimum(low, top), np.minimum(high, top), curve_style(index)["color"]
        gid = f"band-{signal}-{group.key}"
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, gid=gid)


def _name_of(trace: Trace, group: Group) -> str:
    dead = sum(trace.non_finite_step(r) is not None for r in group.runs)
    size = group.size if len(group.runs) > 1 else ""
    inside = ", ".join(filter(None, (size, f"{dead} non-finite" if dead else "")))
    if group.name == "all runs":
        return inside if len(group.runs) > 1 else f"1 run{', non-finite' if dead else ''}"
    return f"{group.name} ({inside})" if inside else group.name


def _lr_group(axes, group: Group, index: int, lr_R, final_R, cap: float, signal: str) -> None:
    runs = np.array(group.runs)
    lrs = np.unique(lr_R[runs])
    finals = [final_R[runs[lr_R[runs] == lr]] for lr in lrs]
    spread = np.array([quantiles(final[:, None], [0.1, 0.5, 0.9])[:, 0] for final in finals])
    low, median, high = np.minimum(np.where(np.isfinite(spread), spread, cap), cap).T
    name = "" if group.name == "all runs" else group.name
    if len(lrs) > 1:
        sensitivity = lr_sensitivity(lrs.tolist(), median.tolist(), cap)
        name += f"{', ' if name else ''}LR sensitivity {sensitivity:.2g}"
    line_style = curve_style(index)
    dots = {"marker": "o", "markersize": 4.5, "zorder": 3}
    label, gid = name or "1 rate", f"curve-{signal}-final-{group.key}"
    axes.plot(lrs, median, **line_style, **dots, linewidth=1.8, label=label, gid=gid)
    axes.vlines(lrs, low, high, color=line_style["color"], alpha=0.45, linewidth=3)
    best = int(np.argmin(median))
    ring(axes, lrs[best], median[best], line_style["color"], f"best-{group.key}")
    # a touch above the initial loss is a run that learned nothing, not one that was thrown out
    lost = [(lr, cap) for lr, final in zip(lrs, finals, strict=True) if not np.all(final <= 1.05 * abs(cap))]
    if lost:
        mark_non_finite(axes, lost, line_style["color"], f"nonfinite-{signal}-final-{group.key}")
