"""The picture of attention: every number in a cell, masked pairs grey, shapes as they are."""

import numpy as np
import pytest

from stabviz.views import new_figure, plot_attention_shapes

L, M, K, V = 2, 3, 5, 4
MATRICES = {
    "query_LK": np.arange(L * K).reshape(L, K),
    "key_MK": np.ones((M, K)),
    "scores_LM": np.array([[0.25, -np.inf, -np.inf], [1.0, 2.0, -np.inf]]),
    "weights_LM": np.array([[1.0, 0.0, 0.0], [0.27, 0.73, 0.0]]),
    "value_MV": np.zeros((M, V)),
    "out_LV": np.full((L, V), -0.5),
}


def test_plot_attention_shapes_writes_each_number_and_shape_and_greys_what_is_masked():
    axes = new_figure().subplots()
    assert plot_attention_shapes(axes, **MATRICES, tokens=["the", "cat"]) is axes
    words = [text.get_text() for text in axes.texts]
    assert {"0.25", "0.73", "−0.50", "9", "the", "cat"} <= set(words)
    assert words.count("−∞") == 3
    assert {"L × d = 2 × 5", "d × M = 5 × 3", "L × M = 2 × 3", "M × dᵥ = 3 × 4", "L × dᵥ = 2 × 4"} <= set(
        words
    )
    cells = {patch.get_gid(): patch.get_facecolor() for patch in axes.patches}
    assert len(cells) == sum(matrix.size for matrix in MATRICES.values())
    assert cells["cell-weight-0-2"] == cells["cell-score-1-2"] != cells["cell-weight-1-1"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("key", "key_MK"), ("scores", "scores_LM"), ("weights", "weights_LM"), ("out", "out_LV")],
)
def test_plot_attention_shapes_refuses_shapes_that_do_not_fit(name, shape):
    with pytest.raises(ValueError, match=f"plot_attention_shapes: {name} must be"):
        plot_attention_shapes(new_figure().subplots(), **(MATRICES | {shape: np.ones((7, 11))}))
