"""Scores of a predicted number. Axis letter: N inputs."""

import math

import numpy as np

from stabviz.scores.calibration import float64


def regression_scores(predicted_N, true_N) -> dict:
    """Score predicted numbers: by order, by correlation, and by distance.

    A correlation with what is always the same is 0. A run "failed" if a prediction is not finite, or its
    squared error is no smaller than that of always saying the mean: r2 <= 0.

    Shapes: predicted_N, true_N (N,) arrays or tensors
    Units:  rmse and mae of the numbers, mse of their square; NaN if a prediction is not finite
    Raises: ValueError for no rows, shapes that differ, or a true number that is not finite
    Source: Spearman's correlation is Pearson's of the ranks, equal numbers sharing their mean rank

    >>> scores = regression_scores([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    >>> round(scores["pearson"], 4), scores["spearman"], scores["r2"]
    (0.982, 1.0, 0.5)
    """
    predicted_N, true_N = float64(predicted_N), float64(true_N)
    if predicted_N.ndim != 1 or predicted_N.shape != true_N.shape or not true_N.size:
        got = f"{predicted_N.shape} and {true_N.shape}"
        raise ValueError(
            f"regression_scores: predicted_N and true_N must be (N,) with at least one row; got {got}"
        )
    if not np.isfinite(true_N).all():
        raise ValueError("regression_scores: true_N must be finite; got a number that is not")
    lost = int((~np.isfinite(predicted_N)).sum())
    if lost:
        scores = dict.fromkeys(("pearson", "spearman", "r2", "mse", "rmse", "mae"), math.nan)
        return scores | {"rows": len(true_N), "non_finite_rows": lost, "failed": True}
    mse, variance = float(np.mean((predicted_N - true_N) ** 2)), float(np.var(true_N))
    r2 = 1 - mse / variance if variance else 0.0
    return {
        "pearson": _correlation(predicted_N, true_N),
        "spearman": _correlation(_ranks(predicted_N), _ranks(true_N)),
        "r2": r2,
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": float(np.mean(np.abs(predicted_N - true_N))),
        "rows": len(true_N),
        "non_finite_rows": 0,
        "failed": r2 <= 0,
    }


def _correlation(a_N, b_N) -> float:
    if np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return 0.0
    return float(np.corrcoef(a_N, b_N)[0, 1])


def _ranks(values_N):
    _, at_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[at_N]
