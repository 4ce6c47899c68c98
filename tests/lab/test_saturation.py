"""Random attention: the variance of the scores is the head width, and the slope is that of the softmax."""

import math

import numpy as np
import torch

from stabviz.lab import HEAD_WIDTHS, random_attention


def test_random_attention_has_scores_of_variance_d_and_of_one_after_the_root():
    widths = np.array(HEAD_WIDTHS[3:])
    bare, scaled = (random_attention(7, power)["score_variance"][:, 3:].mean(0) for power in (0.0, 0.5))
    np.testing.assert_allclose(bare / widths, 1, atol=0.2)
    np.testing.assert_allclose(scaled, 1, atol=0.2)


def test_random_attention_slope_is_the_norm_of_the_matrix_of_derivatives():
    # Scores of 0: all weights 1/5, and the matrix of derivatives is known by hand.
    trace = random_attention(5, power=0.5, spread=0.0, draws=2)
    weights = torch.full((5,), 0.2)
    norm = (torch.diag(weights) - torch.outer(weights, weights)).norm().item()
    np.testing.assert_allclose(trace["softmax_slope"], norm, rtol=1e-5)
    np.testing.assert_allclose(trace["attention_entropy"], math.log(5), rtol=1e-5)
