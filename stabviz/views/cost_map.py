"""A map of what something costs, cell by cell, with a limit that tells the cells apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stabviz.views.maps import VERDICT_LOOKS
from stabviz.views.points import short
from stabviz.views.style import style_axes


def plot_cost_map(
    axes: Axes,
    cost_YX,
    *,
    xs: Sequence[float],
    ys: Sequence[float],
    limit: float,
    x: str = "learning rate",
    y: str = "width",
) -> Axes:
    """Write the cost into each cell, a check before what stays below the limit and a cross before the rest.

    Rows stand from the bottom up, as in `plot_stability_map`. A cell without a finite cost is a cross.

    Shapes: cost_YX (Y, X)
    Units:  limit in the unit of the cost
    Raises: ValueError unless there is one cost for each x and y
    Lesson: 08-attention-logits

    >>> from stabviz.views import new_figure
    >>> axes = plot_cost_map(new_figure().subplots(), [[0.1, 2.0]], xs=[0.01, 0.1], ys=[32], limit=0.5)
    >>> [text.get_text() for text in axes.texts]
    ['✓ 0.10', '✕ 2.00']
    """
    cost_YX = np.asarray(cost_YX, dtype=np.float64)
    if cost_YX.shape != (len(ys), len(xs)):
        raise ValueError(f"plot_cost_map: cost_YX must be {(len(ys), len(xs))}; got {cost_YX.shape}")
    style_axes(axes, x, y, grid=False)
    for (row, column), cost in np.ndenumerate(cost_YX):
        colour, symbol = VERDICT_LOOKS["healthy" if cost < limit else "diverged"]  # NaN is not below it
        corner = (column - 0.5, row - 0.5)
        gid = f"cell-{short(ys[row])}-{short(xs[column])}"
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=2, gid=gid))
        # + 0.0: what rounds to nothing is 0.00, never -0.00
        words = f"{symbol} {round(cost, 2) + 0.0:.2f}"
        ink = "#111111" if cost < limit else "white"
        axes.text(column, row, words, ha="center", va="center", color=ink, fontsize=10, fontweight="bold")
    axes.set(xlim=(-0.5, len(xs) - 0.5), ylim=(-0.5, len(ys) - 0.5))
    axes.set_xticks(range(len(xs)), [short(value) for value in xs])
    axes.set_yticks(range(len(ys)), [short(value) for value in ys])
    axes.tick_params(length=0)
    return axes
