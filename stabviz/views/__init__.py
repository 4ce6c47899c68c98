"""Plots (Axes in, Axes out) and panels (knobs -> run -> live curves). Imports `stabviz.trace` only."""

from stabviz.views.attention_shapes import plot_attention_shapes
from stabviz.views.block_diagram import plot_block
from stabviz.views.contrast import plot_found
from stabviz.views.cost_map import plot_cost_map
from stabviz.views.descent import plot_descents, plot_edge, plot_sharpness
from stabviz.views.knobs import Choice, Knob
from stabviz.views.maps import plot_attention, plot_loss_surface, plot_stability_map
from stabviz.views.number_bits import plot_number_bits
from stabviz.views.panels import Panel, panel
from stabviz.views.plots import (
    plot_ablation,
    plot_gradient_norm,
    plot_layer_norms,
    plot_loss_fan,
    plot_lr_curve,
)
from stabviz.views.power_law import plot_power_law
from stabviz.views.report import html_report
from stabviz.views.style import new_figure
from stabviz.views.svg import curve_points, figure_svg, show
from stabviz.views.text import describe, table_of, text_table, unseen

__all__ = [
    "Choice",
    "Knob",
    "Panel",
    "curve_points",
    "describe",
    "figure_svg",
    "html_report",
    "new_figure",
    "panel",
    "plot_ablation",
    "plot_attention",
    "plot_attention_shapes",
    "plot_block",
    "plot_cost_map",
    "plot_descents",
    "plot_edge",
    "plot_found",
    "plot_gradient_norm",
    "plot_layer_norms",
    "plot_loss_fan",
    "plot_loss_surface",
    "plot_lr_curve",
    "plot_number_bits",
    "plot_power_law",
    "plot_sharpness",
    "plot_stability_map",
    "show",
    "table_of",
    "text_table",
    "unseen",
]
