"""The curves of real runs beside each other: each Trace one run, with its own steps and its own signals.

A costly signal that is measured every few steps is drawn through its measured points. Run r keeps colour and
line style r in every picture, so that one legend serves a page. Nothing here knows pyplot.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabviz.trace import Trace, signal_of
from stabviz.views.plots import plot_layer_norms
from stabviz.views.points import WATCHED, measured_columns, running_median, thin
from stabviz.views.scales import finish_axes, mark_run, needs_log, or_gap, unit_label
from stabviz.views.style import (
    INK,
    clip_levels,
    curve_style,
    is_finite,
    new_figure,
    place_legend,
    ring,
    style_axes,
)

SMOOTHED_ABOVE = 40
"""A curve of more points than this gets a running median: single batches are noisy."""
MOST_DOTS = 40
"""Up to this many measured points each is drawn as a dot."""
MOST_LAYER_PICTURES = 5
"""Runs that get a picture by layer; more would make the page heavy."""
EVENT_MARKERS = {"rewind": "<", "spike": "^", "out_of_memory": "s", "oom": "s", "overflow": "v", "other": "d"}
"""Marker of a kind of event on the step axis; a non-finite step has its x in the curve."""
MOST_MARKS = 200
_EVENT: dict[str, Any] = {"linestyle": "none", "markersize": 8, "clip_on": False, "zorder": 6}
_EVENT |= {"markeredgecolor": INK, "markeredgewidth": 0.6}
_VALIDATION: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.6, "zorder": 4}
_VALIDATION |= {"marker": "o", "markersize": 5.5, "markeredgecolor": "white"}
FIGURES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss_nats": ("Loss", {}),
    "validation_score": ("Score of the evaluations", {"best": True}),
    "grad_norm_preclip": ("Gradient norm before clipping", {}),
    "lr": ("Learning rate", {}),
    "update_rms": ("Size of the update", {"log": True, "smooth": True}),
    "second_moment_ratio": ("Gradient against its second moment", {"log": True, "smooth": True}),
    "max_attention_logit": ("Largest attention logit", {"log": True, "smooth": True}),
    "attention_entropy": ("Attention entropy", {"smooth": True}),
    "log_z": ("Output normaliser", {"smooth": True}),
    "loss_scale": ("Loss scale", {"log": True}),
}
"""Signal -> title of its figure, and how `plot_runs` draws it; loss and gradient norm have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFigure:
    """One figure of a report, with the words that stand for it."""

    title: str
    figure: Figure
    finding: str
    wide: bool = False


def report_figures(traces: Sequence[Trace], names: Sequence[str]) -> list[ReportFigure]:
    """Draw what the runs measured, in the order of a training step; without what nobody measured.

    Raises: ValueError if a Trace holds several runs
    """
    for name, trace in zip(names, traces, strict=True):
        if trace.n_runs != 1:
            got = f"{trace.n_runs} in {name!r}"
            raise ValueError(f"report_figures: each Trace must hold one run, see Trace.take; got {got}")
    figures = []
    for signal, (title, options) in FIGURES.items():
        if not _any_measured(traces, signal):
            continue
        finding = _finding(traces, names, signal)
        if signal == "loss_nats":
            finding = _loss_finding(traces, names)
            figures.append(_report_figure(title, plot_learning, traces, finding=finding, wide=True))
        elif signal == "grad_norm_preclip":
            finding += _share_above_clip(traces)
            figures.append(_report_figure(title, _gradient, traces, finding=finding))
        else:
            figures.append(
                _report_figure(title, plot_runs, traces, finding=finding, signal=signal, **options)
            )
    layered = [r for r, trace in enumerate(traces) if layers_of(trace)]
    for r in layered[:MOST_LAYER_PICTURES]:
        title = f"Gradient norm by layer{f': {names[r]}' if len(traces) > 1 else ''}"
        figures.append(_report_figure(title, _layers, traces[r], finding=_layer_finding(traces[r])))
    return figures


def layers_of(trace: Trace) -> list[str]:
    """Names of the layers whose gradient norm was measured at least once."""
    return [
        name.partition("/")[2]
        for name in trace.signals
        if name.startswith("grad_norm_preclip/") and np.isfinite(trace[name]).any()
    ]


def plot_runs(
    axes: Axes,
    traces: Sequence[Trace],
    *,
    signal: str,
    log: bool = False,
    levels: Sequence[float] = (),
    smooth: bool = False,
    best: bool = False,
) -> Axes:
    """Draw one curve a run through its measured points; `best` rings the best of each.

    With `smooth` a long curve is drawn thin, and its running median thick.
    """
    style_axes(axes, "step", unit_label(traces[0], signal))
    axes.set_yscale("log" if log else "linear")
    for r, trace in enumerate(traces):
        if signal not in trace:
            continue
        _draw_run(axes, trace, r, signal, smooth)
        steps, values_S = _points(trace, signal)
        if best and np.isfinite(values_S).any():
            best_of = np.nanargmin if trace.config.get("score_is_error") else np.nanargmax
            at = int(best_of(values_S))
            ring(axes, steps[at], values_S[at], curve_style(r)["color"], f"best-{signal}-{r}")
    finish_axes(axes, *traces, log=log, levels=levels)
    return axes


def plot_learning(axes: Axes, traces: Sequence[Trace]) -> Axes:
    """Draw training loss (thin: each step; thick: running median), validation loss (dots) and events."""
    style_axes(axes, "step", unit_label(traces[0], "loss_nats"))
    log = any(needs_log(trace["loss_nats"]) for trace in traces if "loss_nats" in trace)
    axes.set_yscale("log" if log else "linear")
    for r, trace in enumerate(traces):
        if "loss_nats" in trace:
            _draw_run(axes, trace, r, "loss_nats", True, labelled=len(traces) == 1)
        if "validation_loss_nats" in trace:
            x, y = thin(*_points(trace, "validation_loss_nats"))
            gid, label = f"curve-validation_loss_nats-{r}", "validation" if len(traces) == 1 else None
            axes.plot(x, y, color=curve_style(r)["color"], gid=gid, label=label, **_VALIDATION)
    finish_axes(axes, *traces, log=log)
    mark_events(axes, traces)
    if len(traces) == 1:
        place_legend(axes)
    return axes


def mark_events(axes: Axes, traces: Sequence[Trace]) -> Axes:
    """Mark what happened on the step axis, one marker a kind, in the colour of the run."""
    for r, trace in enumerate(traces):
        for kind, marker in EVENT_MARKERS.items():
            steps = [event["step"] for event in trace.events if marker_kind(event["kind"]) == kind]
            if steps:
                x, look = steps[:MOST_MARKS], {"marker": marker, "color": curve_style(r)["color"], **_EVENT}
                # x in steps and y in shares of the axes: the marks stay on the axis, whatever the loss does
                at_axis = axes.get_xaxis_transform()
                axes.plot(x, [0.0] * len(x), gid=f"event-{kind}-{r}", transform=at_axis, **look)
    return axes


def _draw_run(axes, trace, r, signal, smooth, *, labelled: bool = False):
    steps, values_S = _points(trace, signal)
    x, y = thin(steps, values_S)
    line_style, gid = curve_style(r), f"curve-{signal}-{r}"
    width = _smoothing_width(len(steps)) if smooth else 1
    if width > 1:
        label = "each step" if labelled else None
        axes.plot(x, y, color=line_style["color"], linewidth=0.8, alpha=0.4, gid=gid, label=label)
        x, y = thin(steps, running_median(values_S, width, gaps=True))
        gid, label = f"smooth-{signal}-{r}", f"median of {width} steps" if labelled else None
        axes.plot(x, y, **line_style, linewidth=1.8, zorder=3, gid=gid, label=label)
    else:
        dots = {"marker": "o" if len(steps) <= MOST_DOTS else None, "markersize": 3.5}
        label = "training" if labelled else None
        axes.plot(x, y, **line_style, **dots, linewidth=1.5, gid=gid, label=label, zorder=3)
    mark_run(axes, trace, 0, signal, line_style["color"], number=r)


def _gradient(axes: Axes, traces: Sequence[Trace]) -> None:
    levels = clip_levels(axes, [trace.config.get("clip_norm") for trace in traces])
    plot_runs(axes, traces, signal="grad_norm_preclip", log=True, levels=levels, smooth=True)
    mark_events(axes, traces)


def _layers(axes: Axes, trace: Trace) -> None:
    width = _smoothing_width(trace.n_steps)
    plot_layer_norms(axes, trace, run=0, median_of=width)
    if width > 1:
        legend = axes.get_legend()
        assert legend is not None, "plot_layer_norms places one"
        legend.set_title(f"median of {width} steps")


def _smoothing_width(n_steps: int) -> int:
    """Steps that a running median spans; 1 for a short curve, which is drawn as it is."""
    return min(51, max(5, n_steps // 15)) // 2 * 2 + 1 if n_steps > SMOOTHED_ABOVE else 1


def _report_figure(title: str, draw, *data, finding: str, wide: bool = False, **options) -> ReportFigure:
    figure = new_figure(960 if wide else 560, 300 if wide else 250)
    axes = figure.subplots()
    draw(axes, *data, **options)
    axes.set_ylabel(textwrap.fill(axes.get_ylabel(), 24))
    return ReportFigure(title=title, figure=figure, finding=finding, wide=wide)


def _any_measured(traces, signal) -> bool:
    return any(signal in trace and np.isfinite(trace[signal]).any() for trace in traces)


def _points(trace, signal):
    """Steps and values of a curve: where it was measured; what was lost leaves a gap."""
    steps, values_RS = measured_columns(trace, signal, [0])
    return steps, or_gap(values_RS[0])


def marker_kind(kind: str) -> str:
    """Return the key of EVENT_MARKERS for a kind of event; "non_finite" has no marker."""
    return kind if kind in EVENT_MARKERS or kind == "non_finite" else "other"


def _loss_finding(traces, names) -> str:
    words = _finding(traces, names, "loss_nats", label="Training loss")
    if _any_measured(traces, "validation_loss_nats"):
        words += " " + _finding(traces, names, "validation_loss_nats", lowest=True)
    return words


def _share_above_clip(traces) -> str:
    shares = []
    for trace in traces:
        clip = trace.config.get("clip_norm")
        if isinstance(clip, int | float) and is_finite(clip) and "grad_norm_preclip" in trace:
            norms = trace["grad_norm_preclip"][0]
            above = norms[np.isfinite(norms)] > clip
            shares.append(float(above.mean()) if above.size else 0.0)
    if not shares:
        return ""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return f" Above the threshold in {low if low == high else f'{low} to {high}'} of the steps."


def _finding(traces, names, signal, *, label: str | None = None, lowest: bool = False) -> str:
    """What the curves show, in figures: first, last and extreme value of one run; where several end."""
    label = label or signal_of(signal).label
    label = label[:1].upper() + label[1:]
    ends = {}
    for name, trace in zip(names, traces, strict=True):
        if signal not in trace:
            continue
        alive = np.flatnonzero(np.isfinite(trace[signal][0]))
        if alive.size:
            ends[name] = trace.steps[alive], trace[signal][0][alive].astype(np.float64)
    if len(traces) == 1:
        words = _one_run(*ends[names[0]], lowest)
    else:
        words = _several_runs(ends, len(traces))
    for name, trace in zip(names, traces, strict=True):
        step = trace.non_finite_step(0)
        if step is not None and signal in WATCHED:
            words += f"; {name + ': ' if len(traces) > 1 else ''}not finite from step {step} on"
    return f"{label}: {words}."


def _one_run(steps, values, lowest) -> str:
    words = f"{values[0]:.3g} at step {steps[0]}"
    if len(values) > 1:
        at = int(np.argmin(values) if lowest else np.argmax(values))
        words += f", {values[-1]:.3g} at step {steps[-1]}"
        words += f"; {'lowest' if lowest else 'highest'} {values[at]:.3g} at step {steps[at]}"
    return words


def _several_runs(ends, n_runs) -> str:
    last = {name: float(values[-1]) for name, (_, values) in ends.items()}
    low, high = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    first = np.median([values[0] for _, values in ends.values()])
    of = f"{len(last)} of {n_runs} runs" if len(last) < n_runs else f"{n_runs} runs"
    words = f"median of {of} {first:.3g} at first, {np.median(list(last.values())):.3g} at last"
    if last[low] == last[high]:
        return words
    return words + f"; at last lowest in {low}, {last[low]:.3g}, and highest in {high}, {last[high]:.3g}"


def _layer_finding(trace) -> str:
    norms = {}
    for layer in layers_of(trace):
        values_S = trace[f"grad_norm_preclip/{layer}"][0]
        norms[layer] = float(np.median(values_S[np.isfinite(values_S)]))
    top, low = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    factor = f", a factor of {norms[top] / norms[low]:.3g}" if norms[low] > 0 else ""
    ends = f"largest in {top}, {norms[top]:.3g}; smallest in {low}, {norms[low]:.3g}"
    return f"Median gradient norm by layer: {ends}{factor}."
