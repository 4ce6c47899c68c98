"""Pictures of two axes that are no step axis: stability map, attention, loss surface."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stabviz.trace import Trace, verdicts
from stabviz.views.points import group_runs, short
from stabviz.views.style import INK, curve_style, place_legend, style_axes

VERDICT_LOOKS = {
    "healthy": ("#3f90da", "✓"),
    "too_short": ("#e7e9ec", "…"),
    "spiked": ("#ffa90e", "▲"),
    "overfit": ("#e76300", "↗"),
    "stalled": ("#b8bdc4", "–"),
    "diverged": ("#bd1f01", "✕"),
}
"""Verdict -> colour and symbol, from best to gravest; the symbol alone tells them apart."""


def plot_stability_map(
    axes: Axes, trace: Trace, *, x: str = "lr", y: str | None = None, legend: bool = True
) -> Axes:
    """Draw a cell for each (x, y), coloured by its most frequent verdict, with its symbol and count.

    Of equally frequent verdicts the graver one is shown. `y` defaults to the first label that is neither x
    nor the seed.

    Raises: ValueError if x or y is no label
    Lesson: 08-attention-logits
    """
    others = [key for key in trace.label_keys if key not in (x, "seed")]
    if y is None and not others:
        raise ValueError(f"plot_stability_map: y must be a label besides {x!r}; got only {trace.label_keys}")
    y = y or others[0]
    judged = [v.kind for v in verdicts(trace)]
    columns = [group.labels[x] for group in group_runs(trace, x)]
    rows = [group.labels[y] for group in group_runs(trace, y)]
    style_axes(axes, _knob_name(x), _knob_name(y), grid=False)
    for group in group_runs(trace, [x, y]):
        i, j = columns.index(group.labels[x]), rows.index(group.labels[y])
        _map_cell(axes, i, j, Counter(judged[r] for r in group.runs), f"cell-{group.key}")
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xticks(range(len(columns)), [short(value) for value in columns])
    axes.set_yticks(range(len(rows)), [short(value) for value in rows])
    axes.tick_params(length=0)
    if legend:
        handles = [
            Rectangle((0, 0), 1, 1, facecolor=colour, label=f"{symbol} {kind}")
            for kind, (colour, symbol) in VERDICT_LOOKS.items()
            if kind not in ("too_short", "overfit") or kind in judged  # no run of the lab is either
        ]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return axes


def plot_attention(
    axes: Axes,
    weights_LM,
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    mask_LM=None,
) -> Axes:
    """Draw one head's attention weights: query rows from the top, key columns; small ones with figures.

    Shapes: weights_LM (L, M); mask_LM (L, M) bool, True = may attend; elsewhere the cell is left grey
    Raises: ValueError if weights_LM is not of two axes, or names do not fit it
    Lesson: 01-attention
    """
    weights_LM = np.asarray(weights_LM, dtype=np.float64)
    if weights_LM.ndim != 2:
        raise ValueError(f"plot_attention: weights_LM must have shape (L, M); got {weights_LM.shape}")
    L, M = weights_LM.shape
    for name, words, size in (("queries", queries, L), ("keys", keys, M)):
        if words is not None and len(words) != size:
            raise ValueError(f"plot_attention: {name} must hold {size} names; got {len(words)}")
    style_axes(axes, "key position", "query position", grid=False)
    axes.set_facecolor("#eeeeee")
    allowed_LM = np.ones((L, M), bool) if mask_LM is None else np.asarray(mask_LM, bool)
    shown_LM = np.ma.masked_where(~allowed_LM | ~np.isfinite(weights_LM), weights_LM)
    # in a large map one early row that sees a single key (weight 1) would leave all others dark
    figures = shown_LM.compressed() if shown_LM.count() else np.zeros(1)
    top = max(float(figures.max() if L * M <= 100 else np.quantile(figures, 0.99)), 1e-12)
    image = axes.imshow(shown_LM, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    image.set_gid("heat-attention")
    for at, words in ((axes.xaxis, keys), (axes.yaxis, queries)):
        if words is not None:
            at.set_ticks(range(len(words)), list(words))
    if L * M <= 100:
        _write_weights(axes, shown_LM)
    more = "max" if figures.max() > top else "neither"
    axes.figure.colorbar(image, ax=axes, label="attention weight", pad=0.02, extend=more)
    return axes


def plot_loss_surface(
    axes: Axes,
    function: Callable,
    paths: Mapping[str, np.ndarray],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    legend: bool = True,
) -> Axes:
    """Draw contours of a function of two parameters, with the path of each optimiser over it.

    `function(x, y)` takes and gives arrays. Contours are spaced evenly in the log of the height above the
    lowest point of the picture. A path that leaves the picture or goes non-finite ends in an x at the last
    point inside.

    Shapes: each path (S, 2)
    Raises: ValueError for a path of another shape
    """
    x_grid, y_grid = np.meshgrid(np.linspace(*x_range, 121), np.linspace(*y_range, 101))
    height = np.asarray(function(x_grid, y_grid), dtype=np.float64)
    # the share of the spread keeps the lowest point off log 0, where all contours would crowd round it
    height = np.log10(height - np.nanmin(height) + 1e-3 * np.nanstd(height) + 1e-300)
    style_axes(axes, "first parameter", "second parameter", grid=False)
    axes.contourf(x_grid, y_grid, height, levels=14, cmap="Greys", alpha=0.3)
    axes.contour(x_grid, y_grid, height, levels=14, colors="#999999", linewidths=0.5)
    for index, (name, path) in enumerate(paths.items()):
        path = np.asarray(path, dtype=np.float64)
        if path.ndim != 2 or path.shape[1] != 2:
            raise ValueError(f"plot_loss_surface: paths[{name!r}] must have shape (S, 2); got {path.shape}")
        _draw_path(axes, name, path, index, x_range, y_range)
    axes.set_xlim(*x_range)
    axes.set_ylim(*y_range)
    if legend:
        place_legend(axes)
    return axes


def _map_cell(axes, i: int, j: int, kinds: Counter, gid: str) -> None:
    grave = list(VERDICT_LOOKS)
    kind = max(kinds, key=lambda k: (kinds[k], grave.index(k)))
    colour, symbol = VERDICT_LOOKS[kind]
    axes.add_patch(
        Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2, gid=gid)
    )
    ink = "white" if kind == "diverged" else "#111111"
    total = sum(kinds.values())
    words = symbol if total == 1 else f"{symbol} {kinds[kind]}/{total}"
    axes.text(i, j, words, ha="center", va="center", color=ink, fontsize=10, fontweight="bold")


def _write_weights(axes, shown_LM) -> None:
    top = float(shown_LM.max() or 0)
    for (row, column), weight in np.ndenumerate(shown_LM.filled(np.nan)):
        if np.isfinite(weight):
            colour = "white" if weight < 0.55 * top else "#111111"
            axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=colour)


def _draw_path(axes, name: str, path, index: int, x_range, y_range) -> None:
    (x_low, x_high), (y_low, y_high) = x_range, y_range
    inside = np.all((path >= (x_low, y_low)) & (path <= (x_high, y_high)), axis=1)  # False for NaN
    stop = len(path) if inside.all() else int(np.argmin(inside))
    shown = path[:stop] if stop else np.clip(np.nan_to_num(path[:1]), (x_low, y_low), (x_high, y_high))
    left = stop < len(path)
    words = f"{name} (left the picture at step {stop})" if left else name
    line_style = curve_style(index)
    dots, gid = {"marker": ".", "markersize": 4}, f"path-{_id(name)}"
    axes.plot(*shown.T, **line_style, **dots, linewidth=1.6, label=words, gid=gid, zorder=3)
    axes.plot(*shown[0], marker="o", markersize=7, color=INK, zorder=4)
    marker, size, edge = ("x", 9, 2) if left else ("*", 11, 0.5)
    end = {"marker": marker, "markersize": size, "markeredgewidth": edge, "linestyle": "none"}
    axes.plot(*shown[-1], **end, color=line_style["color"], gid=f"end-{_id(name)}", zorder=5, clip_on=False)


def _id(name: str) -> str:
    return name.replace(" ", "_")


def _knob_name(key: str) -> str:
    return "learning rate" if key == "lr" else key.replace("_", " ")
