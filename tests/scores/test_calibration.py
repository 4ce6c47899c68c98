import numpy as np
import pytest

from stabviz.scores import expected_calibration_error

ABOUT = 1e-12  # float64 sums of a few hundred terms


def test_calibration_error_by_hand():
    # bin (13/15, 14/15]: confidences 0.9 and 0.92, one right: gap |0.5 - 0.91|, two rows of five
    # bin (7/15, 8/15]: 0.5, right: gap 0.5; bin (9/15, 10/15]: 0.64 and 0.66, both right: gap 0.35
    sure_N = np.array([0.9, 0.92, 0.5, 0.64, 0.66])
    labels_N = [0, 1, 0, 0, 0]
    error = expected_calibration_error(np.stack([sure_N, 1 - sure_N], axis=1), labels_N)
    assert error == pytest.approx((2 * 0.41 + 1 * 0.5 + 2 * 0.35) / 5, abs=ABOUT)


def test_calibration_error_of_one_bin_is_confidence_less_accuracy():
    generator = np.random.default_rng(2)
    labels_N, probabilities_NC = generator.integers(0, 7, 101), generator.dirichlet(np.ones(7), 101)
    gap = np.mean(probabilities_NC.max(axis=1)) - np.mean(probabilities_NC.argmax(axis=1) == labels_N)
    assert expected_calibration_error(probabilities_NC, labels_N, bins=1) == pytest.approx(
        abs(gap), abs=ABOUT
    )


def test_calibration_error_edge_belongs_to_the_lower_bin():
    # 0.8 is the upper edge of bin (0.6, 0.8] of five: together with 0.7, right and wrong cancel
    probabilities = [[0.8, 0.2], [0.7, 0.3]]
    assert expected_calibration_error(probabilities, [0, 1], bins=5) == pytest.approx(0.25, abs=ABOUT)
    # 0.81 has a bin of its own: |1 - 0.81| and |0 - 0.7|
    assert expected_calibration_error([[0.81, 0.19], [0.7, 0.3]], [0, 1], bins=5) == pytest.approx(
        0.445, abs=ABOUT
    )


def test_calibration_error_of_a_sure_and_right_model_is_zero():
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


def test_calibration_error_refuses():
    with pytest.raises(ValueError, match="expected_calibration_error: bins must be at least 1; got 0"):
        expected_calibration_error([[1.0, 0.0]], [0], bins=0)
    with pytest.raises(
        ValueError, match=r"probabilities_NC must be \(N, C\) with N >= 1 labels; got \(1, 2\) and \(2"
    ):
        expected_calibration_error([[1.0, 0.0]], [0, 1])
    with pytest.raises(ValueError, match=r"N >= 1 labels; got \(0, 2\) and \(0,\)"):
        expected_calibration_error(np.zeros((0, 2)), np.zeros(0, int))
