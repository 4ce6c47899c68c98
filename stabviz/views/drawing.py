"""What all plots share: figures without pyplot, colours with line styles, groups of runs, fewer points.

Colours are those of Petroff 2021, arXiv:2107.02270 (chosen to be told apart with colour-blind eyes), the
darkest first; each comes with its own line style, so that no curve is known by its colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.lib.stride_tricks import sliding_window_view

from stabviz.trace import Trace

COLOURS = (
    "#3f90da",
    "#bd1f01",
    "#832db6",
    "#e76300",
    "#717581",
    "#a96b59",
    "#ffa90e",
    "#8c8034",
    "#5e7c78",
    "#2f9ea3",
)
LINE_STYLES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (7, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (9, 2, 2, 2)),
    (0, (2, 3)),
)
INK = "#222222"
QUIET = "#666666"
GRID = "#e4e4e4"
WATCHED = ("loss_nats", "grad_norm_preclip")
"""Signals that every step measures: what is not finite in them was lost, not left out."""
MOST_POINTS = 400
"""A curve of more points than this is thinned: a picture of 700 px cannot show more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs drawn as one curve: what they share, and which they are."""

    name: str
    """For the legend: "lr=0.001", or "all runs"."""
    key: str
    """For the gid: stable, without blanks."""
    values: tuple
    runs: tuple[int, ...]
    noun: str
    """What the runs differ in: "seed" where nothing else varies among them, else "run"."""

    @property
    def size(self) -> str:
        return f"{len(self.runs)} {self.noun}{'s' * (len(self.runs) != 1)}"


def new_figure(width_px: int = 720, height_px: int = 320) -> Figure:
    """Make a Figure on explicit white, readable in a light and in a dark page; never through pyplot.

    >>> new_figure(700, 320).get_size_inches().tolist()
    [7.0, 3.2]
    """
    return Figure(figsize=(width_px / 100, height_px / 100), dpi=100, facecolor="white", layout="constrained")


def look(axes: Axes, xlabel: str, ylabel: str, *, grid: bool = True) -> None:
    """Give the axes the look of the course: white ground, quiet grid, labels with units."""
    axes.set_facecolor("white")
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#888888")
    if grid:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def style(index: int) -> dict:
    """Colour and line style of curve `index`: both differ from the neighbours'."""
    # after ten curves the styles are shifted against the colours, so that no pair comes twice in a hundred
    return {"color": COLOURS[index % 10], "linestyle": LINE_STYLES[(index + index // 10) % 10]}


def group_runs(trace: Trace, by: str | Sequence[str] | None, *, apart: Sequence[str] = ()) -> list[Group]:
    """Put the runs with equal labels `by` together, in order of those labels.

    None means every label but the seed and those in `apart` (what the x axis shows).
    """
    known = trace.label_keys
    if by is None:
        by = [key for key in known if key != "seed" and key not in apart]
    keys = [by] if isinstance(by, str) else list(by)
    for key in keys:
        if key not in known:
            raise ValueError(f"group_runs: by must be among the labels {known}; got {key!r}")
    found: dict[tuple, list[int]] = {}
    for r, run in enumerate(trace.runs):
        found.setdefault(tuple(run.get(key) for key in keys), []).append(r)
    within = [k for k in known if k not in keys and k not in apart]
    noun = "seed" if within == ["seed"] else "run"
    groups = []
    for values in sorted(found, key=lambda values: tuple(map(_order, values))):
        name = ", ".join(f"{key}={_short(value)}" for key, value in zip(keys, values, strict=True))
        groups.append(
            Group(
                name=name or "all runs",
                key=(name or "all").replace(", ", ",").replace(" ", "_"),
                values=values,
                runs=tuple(found[values]),
                noun=noun,
            )
        )
    return groups


def quantiles(values_RS: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles over runs at each step, a non-finite value counting as the worst; inf where that decides.

    Leaving dead runs out would draw the survivors' curve, which looks better the more runs have died.
    """
    worst = 1e300
    filled_RS = np.where(np.isfinite(values_RS), values_RS.astype(np.float64), worst)
    found = np.quantile(filled_RS, shares, axis=0)
    return np.where(found > worst / 1e6, np.inf, found)


def thin(x_S: np.ndarray, y_S: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most `most` points of a curve, among them the lowest and highest of every stretch.

    >>> import numpy as np
    >>> y_S = np.zeros(9973)
    >>> y_S[5003] = 7.0
    >>> x, y = thin(np.arange(9973), y_S)
    >>> len(x) <= 400, y.max(), x[y.argmax()]
    (True, np.float64(7.0), np.int64(5003))
    """
    if len(x_S) <= most:
        return x_S, y_S
    edges = np.linspace(0, len(x_S), (most - 2) // 2 + 1).astype(int)
    keep = {0, len(x_S) - 1}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        part = y_S[low:high]
        if np.isfinite(part).any():
            keep |= {
                low + int(np.nanargmin(np.where(np.isfinite(part), part, np.nan))),
                low + int(np.nanargmax(np.where(np.isfinite(part), part, np.nan))),
            }
        else:
            keep.add(int(low))
    at = np.array(sorted(keep))
    return x_S[at], y_S[at]


def running_median(values_S, width: int, *, gaps: bool = False) -> np.ndarray:
    """Median of the `width` values around each one, fewer at the ends; NaN where none of them is finite.

    With `gaps` it is NaN wherever the value itself is: a curve does not go on where the run did not.

    >>> running_median([1.0, 9.0, 2.0, float("nan"), 4.0], 3).tolist()
    [5.0, 2.0, 5.5, 3.0, 4.0]
    """
    values_S = np.asarray(values_S, np.float64)
    values_S = np.where(np.isfinite(values_S), values_S, np.nan)
    half = width // 2
    padded_S = np.concatenate([np.full(half, np.nan), values_S, np.full(half, np.nan)])
    sorted_SW = np.sort(sliding_window_view(padded_S, 2 * half + 1), axis=1)  # NaN goes last
    count_S = np.isfinite(sorted_SW).sum(axis=1)
    row_S = np.arange(len(sorted_SW))
    low_S, high_S = sorted_SW[row_S, np.maximum(count_S - 1, 0) // 2], sorted_SW[row_S, count_S // 2]
    median_S = (low_S + high_S) / 2
    return np.where(np.isfinite(values_S), median_S, np.nan) if gaps else median_S


def thin_band(x_S, low_S, high_S, most: int = MOST_POINTS):
    """Keep at most `most` columns of a band, each as wide as the widest of its stretch."""
    if len(x_S) <= most:
        return x_S, low_S, high_S
    edges = np.linspace(0, len(x_S), most + 1).astype(int)[:-1]
    return x_S[edges], np.minimum.reduceat(low_S, edges), np.maximum.reduceat(high_S, edges)


def measured(trace: Trace, run: int, signal: str) -> np.ndarray:
    """At which steps a run measured a signal, (S,) bool: a costly one is NaN where nobody looked.

    NaN of the loss or the total gradient norm is a measurement. For any other signal NaN is one only where
    the run ended non-finite, and for scores of an evaluation never. Infinity always is one.
    """
    values_S = trace[signal][run]
    if signal in WATCHED:
        return np.ones(values_S.shape, dtype=bool)
    dead = None if signal.startswith("validation") else trace.non_finite_step(run)
    return ~np.isnan(values_S) | (trace.steps == (-1 if dead is None else dead))


def measured_columns(trace: Trace, signal: str, runs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which any of the runs measured a signal, and its values there, (runs, steps)."""
    measured_RS = np.stack([measured(trace, run, signal) for run in runs])
    column_S = measured_RS.any(axis=0)
    return trace.steps[column_S], trace[signal][list(runs)][:, column_S].astype(np.float64)


def non_finite_marks(trace: Trace, run: int, signal: str) -> list[tuple[float, float]]:
    """Where the signal of a run becomes non-finite: (step, last finite value before it, NaN if none)."""
    values_S = trace[signal][run].astype(np.float64)
    bad_S = ~np.isfinite(values_S) & measured(trace, run, signal)
    dead = trace.non_finite_step(run)
    onsets = [s for s in np.flatnonzero(bad_S) if s == 0 or not bad_S[s - 1]]
    marks = []
    for s in onsets:
        before = values_S[:s][np.isfinite(values_S[:s])]
        step = float(trace.steps[s])
        if dead is not None and s == onsets[-1] and bad_S[s:].all():
            step = min(step, float(dead))
        marks.append((step, float(before[-1]) if before.size else math.nan))
    return marks


def level(
    axes: Axes,
    value: float,
    words: str,
    *,
    gid: str,
    colour: str = QUIET,
    below: bool = False,
    left: bool = False,
) -> None:
    """Draw a level across the axes, with its words at one end: above the line, or below where curves end."""
    axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (4, 3)), gid=gid, zorder=2)
    text = axes.annotate(
        words,
        (0 if left else 1, value),
        xycoords=("axes fraction", "data"),
        xytext=(3 if left else -3, -2 if below else 2),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top" if below else "bottom",
        fontsize=8.5,
        color=colour,
        zorder=4,
    )
    text.set_gid(f"words-{gid}")


def task_levels(
    axes: Axes, trace: Trace, chance: float | None, floor: float | None, *, left: bool = False
) -> list[float]:
    """Draw chance and floor, the task's where None is given; NaN draws none. Returns what was drawn."""
    chance = trace.config.get("chance_nats") if chance is None else chance
    floor = trace.config.get("floor_nats") if floor is None else floor
    drawn = []
    for name, value in (("chance", chance), ("floor", floor)):
        if is_finite(value):
            level(axes, value, f"{name} {value:.3g}", gid=f"level-{name}", below=name == "floor", left=left)
            drawn.append(float(value))
    return drawn


def log_axis(axes: Axes) -> None:
    """Make y logarithmic, with plain figures while they span few decades: 2, not 2 x 10^0."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    if high / low < 1e4:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,)))
        narrow = high / low < 30
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0) if narrow else (3.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(which="minor", colors=INK, labelsize=9)
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def is_finite(value) -> bool:
    """Whether a level is given at all and can be drawn."""
    return value is not None and math.isfinite(value)


def place_legend(
    axes: Axes, title: str | None = None, *, loc: str = "upper right", mark: str = "went non-finite"
) -> None:
    """Legend inside for a few curves, beside the axes for many; an x is explained where one is drawn."""
    handles, names = axes.get_legend_handles_labels()
    marks = [line for line in axes.lines if (line.get_gid() or "").startswith("nonfinite-")]
    if marks:
        proxy = axes.plot([], [], linestyle="none", marker="x", markersize=7, markeredgewidth=2, color=INK)[0]
        handles, names = [*handles, proxy], [*names, mark]
    if any((collection.get_gid() or "").startswith("band-") for collection in axes.collections):
        title = title or "line: median, band: 10–90 %"
    if not handles:
        return
    inside = loc != "upper right" or len(handles) <= 4 and not marks and _corner_is_free(axes)
    place = {"loc": loc} if inside else {"loc": "upper left", "bbox_to_anchor": (1.005, 1)}
    box = axes.legend(
        handles,
        names,
        title=title,
        fontsize=9,
        title_fontsize=8.5,
        frameon=inside,
        framealpha=0.9,
        edgecolor="none",
        handlelength=2.6,
        borderaxespad=0.2,
        **place,
    )
    box.get_title().set_color(QUIET)
    box.set_zorder(6)
    if inside and loc == "upper right":  # the words of the upper level would lie under the box
        for text in axes.texts:
            if text.get_gid() in ("words-level-chance", "words-level-clip"):
                text.xy = (0.64, text.xy[1])


def _corner_is_free(axes: Axes) -> bool:
    """Whether no curve enters the upper right, where a legend would hide it."""
    for line in axes.lines:
        if (line.get_gid() or "").startswith(("curve-", "run-", "path-")):
            points = axes.transData.transform(np.c_[line.get_xdata(), line.get_ydata()])
            x, y = axes.transAxes.inverted().transform(points[np.isfinite(points).all(axis=1)]).T
            if np.any((x > 0.45) & (y > 0.55)):
                return False
    return True


def _order(value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, str(value))


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
