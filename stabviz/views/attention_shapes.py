"""The picture of what attention multiplies: six matrices with their numbers and their shapes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stabviz.views.style import INK, QUIET

FILLS = {
    "query": "#cfe3f7",
    "key": "#f6d3cd",
    "score": "#ffffff",
    "weight": "#e2d3ef",
    "value": "#ffe3c7",
    "out": "#ffe3c7",
}
MASKED = "#dddddd"


def plot_attention_shapes(
    axes: Axes, query_LK, key_MK, scores_LM, weights_LM, value_MV, out_LV, *, tokens: Sequence[str] = ()
) -> Axes:
    """Draw query times key to scores, and weights times value to the output, each cell with its number.

    A score of -inf is a masked pair: its cell, and that of its weight, is grey.

    Shapes: query_LK (L, K), key_MK (M, K), scores_LM and weights_LM (L, M), value_MV (M, V), out_LV (L, V);
            tokens L names for the rows, or none
    Raises: ValueError if the shapes do not fit one another
    Lesson: 01-attention
    """
    query_LK, key_MK, scores_LM, weights_LM, value_MV, out_LV = (
        np.asarray(matrix, dtype=np.float64)
        for matrix in (query_LK, key_MK, scores_LM, weights_LM, value_MV, out_LV)
    )
    (L, K), (M, V) = query_LK.shape, value_MV.shape
    expected = {"key": (M, K), "scores": (L, M), "weights": (L, M), "out": (L, V)}
    given = {"key": key_MK, "scores": scores_LM, "weights": weights_LM, "out": out_LV}
    for name, shape in expected.items():
        if given[name].shape != shape:
            raise ValueError(f"plot_attention_shapes: {name} must be {shape}; got {given[name].shape}")
    masked_LM = np.isneginf(scores_LM)
    below = max(L, K) + 3.2  # the second line of matrices, under the taller of the first
    right = max(K, M) + 2.0
    far = right + max(M, V) + 2.0
    draw = _Drawer(axes)
    draw.matrix(query_LK, (0, 0), "query", "Q", "L × d", rows=tokens)
    draw.matrix(key_MK.T, (right, 0), "key", "Kᵀ", "d × M")
    draw.matrix(scores_LM, (far, 0), "score", "scores S", "L × M", masked_LM)
    draw.sign("·", (right - 1, K / 2))
    draw.sign("/ √d  =", (far - 1, max(L, K) / 2))
    draw.matrix(weights_LM, (0, below), "weight", "W = softmax(S)", "L × M", masked_LM, rows=tokens)
    draw.matrix(value_MV, (right, below), "value", "V", "M × dᵥ")
    draw.matrix(out_LV, (far, below), "out", "output", "L × dᵥ")
    draw.sign("·", (right - 1, below + M / 2))
    draw.sign("=", (far - 1, below + M / 2))
    axes.set_xlim(-1.6 if tokens else -0.2, far + max(M, V) + 0.2)
    axes.set_ylim(below + max(L, M) + 1.0, -1.2)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return axes


class _Drawer:
    """Matrices of unit cells on axes whose y runs downwards."""

    def __init__(self, axes: Axes):
        self.axes = axes

    def matrix(self, matrix, corner, kind, name, axis_names, masked=None, rows=()):
        left, top = corner
        height, width = matrix.shape
        for (i, j), value in np.ndenumerate(matrix):
            hidden = masked is not None and masked[i, j]
            colour = MASKED if hidden else FILLS[kind]
            cell = Rectangle((left + j, top + i), 1, 1, facecolor=colour, edgecolor="#888888", linewidth=0.8)
            cell.set_gid(f"cell-{kind}-{i}-{j}")
            self.axes.add_patch(cell)
            self.words(_number(value), left + j + 0.5, top + i + 0.5, 9, QUIET if hidden else INK)
        self.words(name, left + width / 2, top - 0.55, 10, INK)
        self.words(f"{axis_names} = {height} × {width}", left + width / 2, top + height + 0.45, 8.5, QUIET)
        for i, word in enumerate(rows):
            self.words(word, left - 0.2, top + i + 0.5, 9, QUIET, ha="right")

    def sign(self, sign, place):
        self.words(sign, *place, 12, INK)

    def words(self, words, x, y, size, colour, ha="center"):
        self.axes.text(x, y, words, ha=ha, va="center", fontsize=size, color=colour)


def _number(value: float) -> str:
    """Two digits after the point, none for a whole number; a masked score is minus infinity."""
    if np.isneginf(value):
        return "−∞"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}".replace("-", "−")
