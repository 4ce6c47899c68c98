"""A matplotlib Figure becomes an SVG that a person, a screen reader and a test can read.

Figures are `matplotlib.figure.Figure`, never pyplot: pyplot's state is shared, and a slider's callback may
come while a cell is drawing. What matplotlib shares all the same (fonts, settings) is kept apart by one
lock.
"""

import html
import io
import threading

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stabviz.trace import Trace

DRAWING = threading.RLock()
"""Held while anything is drawn."""


def picture(draw, trace: Trace, values: dict, height_px: int) -> tuple[str, dict]:
    """Draw one Trace; return the SVG and the data of every curve that has a gid."""
    with DRAWING:
        figure = Figure(figsize=(7.2, height_px / 100), dpi=100, facecolor="white")
        sentence = draw(figure, trace, values)
        curves = {line.get_gid(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
                  for axes in figure.axes for line in axes.lines if line.get_gid()}
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            page = io.StringIO()
            figure.savefig(page, format="svg", metadata={"Date": None})
        svg = page.getvalue()
        label = html.escape(sentence or "", quote=True)
        return svg[svg.index("<svg"):].replace("<svg", f'<svg role="img" aria-label="{label}"', 1), curves


def draw_training(figure: Figure, trace: Trace, values: dict) -> str:
    """Draw loss above gradient norm on one step axis; the clip threshold where one is set."""
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, signal in ((top, "loss_nats"), (bottom, "grad_norm_preclip")):
        for run in range(trace.n_runs):
            if signal in trace:
                axes.plot(trace.steps, trace[signal][run], gid=f"{signal}/{run}", linewidth=1)
        axes.set_ylabel(signal)
    bottom.set_yscale("log")
    bottom.set_xlabel("step")
    return f"Loss of {trace.n_runs} runs over {trace.n_steps} points."
