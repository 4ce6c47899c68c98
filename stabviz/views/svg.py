"""A Figure as SVG that a browser, a screen reader and a test can read."""

import base64
import hashlib
import html
import io
import re
import threading
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

DRAWING = threading.RLock()
"""Held while anything is drawn: fonts and settings of matplotlib are shared by all threads."""

# Without a salt matplotlib draws ids at random. Text as paths looks alike where a font is missing.
_SETTINGS: Any = {"svg.hashsalt": "stabviz", "svg.fonttype": "path"}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def figure_svg(figure: Figure, label: str, *, prefix: str | None = None) -> str:
    """Draw `figure` as an <svg> element with role="img" and `label` as what a screen reader says.

    The same figure gives the same bytes. Every id begins with `prefix` (default: a digest of the drawing), so
    that two figures on one page keep their own clip paths; the plain gid of a curve stands in "data-gid".

    Raises: ValueError if label is empty
    """
    if not label.strip():
        raise ValueError(f"figure_svg: label must state what the picture shows; got {label!r}")
    page = io.StringIO()
    with DRAWING, matplotlib.rc_context(_SETTINGS):
        figure.savefig(page, format="svg", metadata=_NO_METADATA)
    svg = page.getvalue()
    svg = svg[svg.index("<svg") :]  # an XML head may not stand in the middle of a page
    # HTML ids hold for a whole page: two pictures with the same clip path id would clip each other. A digest,
    # not a counter: an executed notebook has the same bytes each time.
    prefix = prefix or "f" + hashlib.sha256((label + svg).encode()).hexdigest()[:10]
    # Groups carry the gids of curves; every other id is matplotlib's own, of clip paths and markers.
    svg = re.sub(r'(<g id=")([^"]*)"', rf'\1{prefix}-\2" data-gid="\2"', svg)
    svg = re.sub(r'(<(?!g )[a-zA-Z]+ (?:[^>]*? )?id=")([^"]*")', rf"\1{prefix}-\2", svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    words = html.escape(label, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


class Shown:
    """A drawn figure as an <img>, which JupyterLab shows in an untrusted notebook too; alt is the finding."""

    def __init__(self, svg: str, label: str):
        self.svg, self.label = svg, label

    def __repr__(self) -> str:
        return self.label

    def _repr_html_(self) -> str:
        # JupyterLab strips <svg> from a notebook that it does not trust, and keeps images.
        data = base64.b64encode(self.svg.encode())
        words = html.escape(self.label, quote=True)
        return f'<img alt="{words}" src="data:image/svg+xml;base64,{data.decode()}"/>'


def show(figure: Figure, label: str) -> Shown:
    """Draw `figure` for a cell's last line; `label` states the finding, for who cannot see the picture.

    Raises: ValueError if label is empty
    Lesson: 00-start-here

    >>> from stabviz.views import new_figure
    >>> show(new_figure(), "An empty picture.")
    An empty picture.
    """
    return Shown(figure_svg(figure, label), label)


def curve_points(drawing: Figure | str, gid: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the points of one curve: data of a Figure's curve, or pixels (y downwards) of an SVG's.

    Raises: KeyError with the known gids if there is no such curve
    """
    if isinstance(drawing, Figure):
        lines = {line.get_gid() or "": line for axes in drawing.axes for line in axes.lines}
        if not gid or gid not in lines:
            raise KeyError(f"curve_points: gid must be one of {sorted(lines)}; got {gid!r}")
        return np.asarray(lines[gid].get_xdata(), float), np.asarray(lines[gid].get_ydata(), float)
    known = re.findall(r'data-gid="([^"]*)"', drawing)
    start = drawing.find(f'data-gid="{html.escape(gid)}"')
    if start < 0:
        raise KeyError(f"curve_points: gid must be one of {sorted(set(known))}; got {gid!r}")
    path = drawing[start:].partition('<path d="')[2].partition('"')[0]
    numbers = np.array([float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", path)]).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]
