"""Calibration: does a model that says 90 % get 90 % of such answers right?"""

import math

import numpy as np
import torch

ECE_BINS = 15
"""Equal-width bins of confidence, the number of Guo et al. 2017."""


def expected_calibration_error(probabilities_NC, labels_N, bins: int = ECE_BINS) -> float:
    """Average the gap between confidence and accuracy over bins of confidence, each weighted by its rows.

    A row goes into the bin ((m - 1) / bins, m / bins] that holds its largest probability. NaN if a
    probability is not finite.

    Shapes: probabilities_NC (N, C), labels_N (N,)
    Raises: ValueError if bins < 1 or there are no rows
    Source: Guo et al. 2017, arXiv:1706.04599, section 2, with 15 bins as there

    >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 12)  # 90 % sure, half of it right
    0.4
    """
    if bins < 1:
        raise ValueError(f"expected_calibration_error: bins must be at least 1; got {bins!r}")
    probabilities_NC, labels_N = float64(probabilities_NC), np.asarray(labels_N)
    if probabilities_NC.ndim != 2 or labels_N.shape != probabilities_NC.shape[:1] or not labels_N.size:
        raise ValueError(
            "expected_calibration_error: probabilities_NC must be (N, C) with N >= 1 labels; "
            f"got {probabilities_NC.shape} and {labels_N.shape}"
        )
    if not np.isfinite(probabilities_NC).all():
        return math.nan
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.searchsorted(np.arange(1, bins) / bins, confidence_N, side="left")
    gap = np.zeros(bins)
    np.add.at(gap, bin_N, right_N - confidence_N)  # rows x (accuracy - mean confidence), bin by bin
    return float(np.abs(gap).sum() / len(labels_N))


def float64(values) -> np.ndarray:
    """Return an array or a tensor of any precision as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)
