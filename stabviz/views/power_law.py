"""A law fitted on small models, drawn beside what the small ones and a larger one did."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from stabviz.views.style import INK, curve_style, place_legend, style_axes


def plot_power_law(
    axes: Axes,
    lrs: Sequence[float],
    fitted: Mapping[str, Sequence[float]],
    measured: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    level: float,
    named: str,
    value: str = "largest attention logit",
) -> Axes:
    """Draw each model's fitted value against the rate as a line, and what it measured as points.

    A model that was measured and not fitted has points alone; one that is only fitted, a line alone.

    Shapes: lrs (N,), each of `fitted` (N,), each of `measured` two of (M,): rates and values
    Raises: ValueError if a fitted line has not as many values as there are rates
    Lesson: 08-attention-logits

    >>> from stabviz.views import curve_points, new_figure
    >>> figure = new_figure()
    >>> fit = {"width 8": [1, 100]}
    >>> axes = plot_power_law(figure.subplots(), [0.1, 1], fit, {}, level=50, named="breaks")
    >>> curve_points(figure, "fit-width 8")[1].tolist()
    [1.0, 100.0]
    """
    style_axes(axes, "learning rate", value)
    axes.set(xscale="log", yscale="log")
    for index, name in enumerate(dict.fromkeys([*fitted, *measured])):
        style = curve_style(index)
        if name in fitted:
            if len(fitted[name]) != len(lrs):
                raise ValueError(
                    f"plot_power_law: fitted[{name!r}] must hold {len(lrs)} values, one a rate; "
                    f"got {len(fitted[name])}"
                )
            axes.plot(lrs, fitted[name], **style, linewidth=1.5, gid=f"fit-{name}", label=name)
        if name in measured:
            rates, values = measured[name]
            # the label once: a line says it already
            label = None if name in fitted else name
            dots = {"marker": "o", "markersize": 6, "linestyle": "none", "color": style["color"]}
            axes.plot(rates, values, **dots, gid=f"points-{name}", label=label)
    axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), gid=f"level-{named}", label=named)
    place_legend(axes, loc="lower right")
    return axes
