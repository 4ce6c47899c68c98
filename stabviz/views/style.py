"""The look of the course's plots: figures without pyplot, colours with line styles, levels, legends.

Colours are those of Petroff 2021, arXiv:2107.02270 (chosen to be told apart with colour-blind eyes), the
darkest first; each comes with its own line style, so that no curve is known by its colour alone.
"""

import math
from collections.abc import Iterable
from numbers import Real
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stabviz.trace import Trace

COLOURS, LINE_STYLES = zip(
    ("#3f90da", "-"),
    ("#bd1f01", "--"),
    ("#832db6", "-."),
    ("#e76300", ":"),
    ("#717581", (0, (7, 2))),
    ("#a96b59", (0, (3, 1, 1, 1, 1, 1))),
    ("#ffa90e", (0, (5, 1))),
    ("#8c8034", (0, (1, 1))),
    ("#5e7c78", (0, (9, 2, 2, 2))),
    ("#2f9ea3", (0, (2, 3))),
    strict=True,
)
INK = "#222222"
QUIET = "#666666"
GRID = "#e4e4e4"


def new_figure(width_px: int = 720, height_px: int = 320) -> Figure:
    """Make a Figure on explicit white, readable in a light and in a dark page; never through pyplot.

    >>> new_figure(700, 320).get_size_inches().tolist()
    [7.0, 3.2]
    """
    return Figure(figsize=(width_px / 100, height_px / 100), dpi=100, facecolor="white", layout="constrained")


def style_axes(axes: Axes, xlabel: str, ylabel: str, *, grid: bool = True) -> None:
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


def curve_style(index: int) -> dict:
    """Colour and line style of curve `index`: both differ from the neighbours'."""
    # after ten curves the styles are shifted against the colours, so that no pair comes twice in a hundred
    return {"color": COLOURS[index % 10], "linestyle": LINE_STYLES[(index + index // 10) % 10]}


def draw_level(
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
    drawn = []
    for name, given in (("chance", chance), ("floor", floor)):
        value = trace.config.get(f"{name}_nats") if given is None else given
        if is_finite(value):
            words, gid = f"{name} {value:.3g}", f"level-{name}"
            draw_level(axes, value, words, gid=gid, below=name == "floor", left=left)
            drawn.append(float(value))
    return drawn


def clip_levels(axes: Axes, thresholds: Iterable) -> list[float]:
    """Draw each clip threshold once; what is not finite and above 0 draws none. Returns what was drawn."""
    numbers = {float(value) for value in thresholds if isinstance(value, Real)}
    drawn = sorted(value for value in numbers if is_finite(value) and value > 0)
    for value in drawn:
        draw_level(axes, value, f"clip at {value:.3g}", gid="level-clip", colour=INK)
    return drawn


def ring(axes: Axes, x: float, y: float, colour: str, gid: str) -> None:
    """Put a ring round the best point of a curve."""
    axes.plot(x, y, marker="o", markersize=10, markerfacecolor="none", color=colour, gid=gid, zorder=4)


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


def is_finite(value) -> TypeGuard[float]:
    """Whether a level is given at all and can be drawn."""
    return value is not None and math.isfinite(value)


def place_legend(
    axes: Axes, title: str | None = None, *, loc: str = "upper right", mark: str = "went non-finite"
) -> None:
    """Legend inside for a few curves, beside the axes for many; an x is explained where one is drawn."""
    handles, names = axes.get_legend_handles_labels()
    marks = [line for line in axes.lines if (line.get_gid() or "").startswith("nonfinite-")]
    if marks:
        # An empty curve as the sample of the legend: the marks themselves have the colours of their runs.
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
            if text.get_gid() in ("words-level-chance", "words-level-clip") and isinstance(text, Annotation):
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
