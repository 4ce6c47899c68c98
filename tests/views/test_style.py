"""Colours of the plots."""

import numpy as np

from stabviz.views.style import COLOURS


def test_colours_can_be_told_from_white():
    """Contrast of at least 1.8 against white for lines of two pixels; the names stand in the legend
    besides."""
    for colour in COLOURS:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 1.8
