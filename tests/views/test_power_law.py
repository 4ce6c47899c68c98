import numpy as np
import pytest

from stabviz.views import curve_points, new_figure, plot_power_law

RATES = [0.01, 0.03, 0.1]
FITTED = {"width 16": [1.0, 9.0, 100.0], "width 32": [4.0, 36.0, 400.0]}
MEASURED = {"width 16": ([0.01, 0.1], [2.0, 90.0])}


def test_plot_power_law_draws_lines_points_and_the_level():
    figure = new_figure()
    plot_power_law(figure.subplots(), RATES, FITTED, MEASURED, level=50.0, named="breaks at 50")
    for name, values in FITTED.items():
        x, y = curve_points(figure, f"fit-{name}")
        np.testing.assert_allclose((x, y), (RATES, values))
    np.testing.assert_allclose(curve_points(figure, "points-width 16"), MEASURED["width 16"])
    assert set(curve_points(figure, "level-breaks at 50")[1]) == {50.0}


def test_plot_power_law_names_a_line_that_is_too_short():
    with pytest.raises(ValueError, match=r"fitted\['width 16'\] must hold 3 values, one a rate; got 2"):
        plot_power_law(
            new_figure().subplots(), RATES, {"width 16": [1.0, 2.0]}, {}, level=1.0, named="breaks"
        )
