"""Scores of a number: against scipy and scikit-learn, and the edges."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from stabviz.scores import regression_scores


@pytest.mark.parametrize("seed", range(5))
def test_regression_scores_are_those_of_scipy_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true_N = rng.integers(0, 6, 41).astype(float)  # ties
    predicted_N = np.round(true_N + rng.normal(size=41), 1)
    scores = regression_scores(predicted_N, true_N)
    assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(predicted_N, true_N)[0], abs=1e-12)
    assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(predicted_N, true_N)[0], abs=1e-12)
    assert scores["r2"] == pytest.approx(metrics.r2_score(true_N, predicted_N), abs=1e-12)
    assert scores["mse"] == pytest.approx(metrics.mean_squared_error(true_N, predicted_N))
    assert scores["rmse"] == pytest.approx(metrics.root_mean_squared_error(true_N, predicted_N))
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(true_N, predicted_N))


def test_the_mean_for_all_has_failed_and_correlates_with_nothing():
    scores = regression_scores([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert (scores["pearson"], scores["spearman"], scores["r2"]) == (0.0, 0.0, 0.0)
    assert scores["failed"]
    assert not regression_scores([1.9, 2.0, 2.1], [1.0, 2.0, 3.0])["failed"]


def test_a_prediction_that_is_not_finite_makes_every_figure_nan():
    scores = regression_scores([1.0, np.inf], [1.0, 2.0])
    assert np.isnan([scores[name] for name in ("pearson", "spearman", "r2", "mse", "rmse", "mae")]).all()
    assert (scores["non_finite_rows"], scores["failed"]) == (1, True)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([], [], "with at least one row"),
        ([1.0], [1.0, 2.0], "must be"),
        ([1.0], [np.nan], "true_N must be finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        regression_scores(predicted, true)
