import math

import pytest

from stabviz.views import new_figure, plot_cost_map


def test_plot_cost_map_marks_each_cell_by_the_limit_and_lets_no_nan_pass():
    axes = plot_cost_map(
        new_figure().subplots(),
        [[-0.001, 0.5, 0.2], [0.49, 2.0, math.nan]],
        xs=[0.01, 0.1, 1.0],
        ys=[16, 32],
        limit=0.5,
    )
    assert [text.get_text() for text in axes.texts] == [
        *("✓ 0.00", "✕ 0.50", "✓ 0.20"),
        *("✓ 0.49", "✕ 2.00", "✕ nan"),
    ]
    assert [text.get_position() for text in axes.texts][3] == (0, 1)  # the second row above the first
    assert [patch.get_gid() for patch in axes.patches][:2] == ["cell-16-0.01", "cell-16-0.1"]


def test_plot_cost_map_names_a_table_of_another_shape():
    with pytest.raises(ValueError, match=r"cost_YX must be \(2, 1\); got \(1, 2\)"):
        plot_cost_map(new_figure().subplots(), [[1.0, 2.0]], xs=[1.0], ys=[1, 2], limit=1.0)
