"""The block of a transformer as a diagram: the stream upwards, its two branches beside it."""

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch

from stabviz.views.style import COLOURS, INK, QUIET

STREAM_X, BRANCH_X = 1.0, 3.2
_STREAM, _BRANCH, _NORM = COLOURS[0], "#f4f1fa", "#fdebdd"


def plot_block(axes: Axes, norm: str, *, width: int = 32) -> Axes:
    """Draw one block from bottom to top, with the layer norm "pre" (in the branch) or "post" (on the sum).

    Each box has a gid: "norm-attention", "attention", "sum-attention", and the same of "feed-forward".

    Raises: ValueError if norm is neither "pre" nor "post"
    Lesson: 07-transformer

    >>> from stabviz.views import new_figure
    >>> axes = plot_block(new_figure().subplots(), "post")
    >>> sorted(box.get_gid() for box in axes.patches if "attention" in box.get_gid())
    ['attention', 'norm-attention', 'sum-attention']
    """
    if norm not in ("pre", "post"):
        raise ValueError(f"plot_block: norm must be 'pre' or 'post'; got {norm!r}")
    axes.set(xlim=(-0.4, 5.4), ylim=(-0.5, 9.3))
    axes.set_axis_off()
    branches = (
        ("attention", "attention\n(mixes positions)"),
        ("feed-forward", f"feed-forward\n{width} → {4 * width} → {width}"),
    )
    _arrow(axes, (STREAM_X, 0.0), (STREAM_X, 8.9), _STREAM, "stream")
    axes.text(STREAM_X, -0.35, "$x$", ha="center", va="center", color=INK, fontsize=11)
    for start, (name, words) in zip((0.3, 4.5), branches, strict=True):
        top = start + (3.3 if norm == "pre" else 2.5)
        _arrow(axes, (STREAM_X, start), (BRANCH_X, start), QUIET, f"leave-{name}", head=False)
        _arrow(axes, (BRANCH_X, start), (BRANCH_X, top), QUIET, f"branch-{name}", head=False)
        _arrow(axes, (BRANCH_X, top), (STREAM_X + 0.28, top), QUIET, f"return-{name}")
        if norm == "pre":
            _box(axes, BRANCH_X, start + 0.8, 1.7, 0.7, "LN", _NORM, f"norm-{name}")
        _box(axes, BRANCH_X, top - 1.1, 3.0, 1.1, words, _BRANCH, name)
        axes.add_patch(
            Circle((STREAM_X, top), 0.28, facecolor="white", edgecolor=INK, zorder=4, gid=f"sum-{name}")
        )
        axes.text(STREAM_X, top, "+", ha="center", va="center", color=INK, fontsize=11, zorder=5)
        if norm == "post":
            _box(axes, STREAM_X, top + 0.85, 1.3, 0.7, "LN", _NORM, f"norm-{name}")
    formula = "x + f(LN(x))" if norm == "pre" else "LN(x + f(x))"
    axes.set_title(f"{norm}-LN: {formula}, twice", fontsize=11, color=INK)
    return axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, words: str, colour: str, gid: str
) -> None:
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0.02,rounding_size=0.12"
    box = FancyBboxPatch(corner, width, height, shape, facecolor=colour, edgecolor=INK, zorder=4, gid=gid)
    axes.add_patch(box)
    axes.text(x, y, words, ha="center", va="center", color=INK, fontsize=9.5, zorder=5)


def _arrow(axes: Axes, start, end, colour: str, gid: str, *, head: bool = True) -> None:
    stream = gid == "stream"
    axes.plot(*zip(start, end, strict=True), color=colour, linewidth=4 if stream else 1.5, gid=gid, zorder=2)
    if head:
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 22 if stream else 12}
        ahead = tuple(e + 0.12 * ((e > s) - (e < s)) for s, e in zip(start, end, strict=True))
        axes.annotate("", xy=ahead, xytext=end if stream else start, arrowprops=look, zorder=3)
