"""Plots (Axes in, Axes out) and panels (knobs -> run -> live curves). Imports `stabviz.trace` only."""

from stabviz.views.knobs import Choice, Knob
from stabviz.views.panels import Panel, panel

__all__ = ["Choice", "Knob", "Panel", "panel"]
