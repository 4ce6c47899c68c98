import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabviz.scores import churn, failed, headline, spread

ABOUT = 1e-12  # float64 sums of a few hundred terms


def test_headline_is_accuracy_or_entity_f1():
    assert headline({"accuracy": 0.75, "macro_f1": 0.6}) == ("accuracy", 0.75)
    assert headline({"precision": 0.5, "f1": 0.25, "tag_accuracy": 0.9}) == ("f1", 0.25)
    with pytest.raises(
        ValueError, match=r"headline: scores must hold 'accuracy' or 'f1'; got \['loss_nats'\]"
    ):
        headline({"loss_nats": 0.0})


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ({"accuracy": 0.31, "loss_nats": 1.0}, False),
        ({"accuracy": 0.3, "loss_nats": 1.0}, True),  # at the baseline counts as failed
        ({"accuracy": 0.2, "loss_nats": 1.0}, True),
        ({"accuracy": 0.9, "loss_nats": math.nan}, True),
        ({"accuracy": 0.9, "loss_nats": math.inf}, True),
        ({"accuracy": math.nan}, True),
        ({"f1": 0.0, "tag_accuracy": 0.9}, True),
        ({"f1": 0.1, "tag_accuracy": 0.2}, False),  # all O finds nothing: any entity found is better
    ],
)
def test_failed_at_or_below_majority_or_not_finite(scores, wanted):
    assert failed(scores, majority_share=0.3) is wanted


def test_failed_refuses_a_share_that_is_none():
    with pytest.raises(ValueError, match=r"failed: majority_share must be in \[0, 1\]; got 30"):
        failed({"accuracy": 0.5}, majority_share=30)


def test_spread_by_hand():
    found = spread([{"accuracy": 0.8}, {"accuracy": 0.5}, {"accuracy": 0.2}], "accuracy", majority_share=0.2)
    assert found == {
        "runs": 3,
        "mean": pytest.approx(0.5),
        "std": pytest.approx(0.3),
        "min": 0.2,
        "max": 0.8,
        "failed": 1,
    }
    assert "failed" not in spread([{"accuracy": 0.8}], "accuracy")


def test_spread_of_one_run_has_no_deviation():
    found = spread([{"f1": 0.5}], "f1")
    assert (found["mean"], found["min"], found["max"]) == (0.5, 0.5, 0.5)
    assert math.isnan(found["std"])


def test_spread_hides_no_run_that_is_not_finite():
    found = spread(
        [{"accuracy": 0.9, "loss_nats": 0.3}, {"accuracy": 0.9, "loss_nats": math.nan}],
        "loss_nats",
        majority_share=0.1,
    )
    assert all(math.isnan(found[key]) for key in ("mean", "std", "min", "max"))
    assert found["failed"] == 1


def test_spread_refuses():
    with pytest.raises(ValueError, match="spread: scores_by_seed must hold at least one run; got none"):
        spread([], "accuracy")
    with pytest.raises(
        ValueError, match=r"spread: key must be a score of every run; got 'f1', run 1 has \['accuracy"
    ):
        spread([{"f1": 0.1}, {"accuracy": 0.1}], "f1")


def test_churn_by_hand():
    # pairs disagree on 1, 2 and 1 of 4 inputs
    assert churn([[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 1, 1]]) == pytest.approx((1 + 2 + 1) / 3 / 4, abs=ABOUT)


def test_churn_of_sentences_counts_a_sentence_once():
    runs = [[["O", "B-PER"], ["O"], ["B-LOC", "I-LOC"]], [["B-PER", "O"], ["O"], ["B-LOC", "I-LOC"]]]
    assert churn(runs) == pytest.approx(1 / 3, abs=ABOUT)


def test_churn_of_arrays_and_tensors():
    a_N, b_N = np.array([0, 1, 2, 1, 0]), np.array([0, 1, 1, 1, 0])
    assert (
        churn(np.stack([a_N, b_N]))
        == churn(torch.tensor(np.stack([a_N, b_N])))
        == pytest.approx(0.2, abs=ABOUT)
    )


def test_churn_of_equal_scores_may_be_large():
    # both are half right, and agree on nothing
    assert churn([[0, 0], [1, 1]]) == 1.0
    assert churn([[0, 1], [0, 1], [0, 1]]) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(3)), st.permutations(range(11)))
def test_churn_does_not_depend_on_order(seed, runs, rows):
    predictions_RN = np.random.default_rng(seed).integers(0, 3, (3, 11))
    assert churn(predictions_RN[np.ix_(runs, rows)]) == pytest.approx(churn(predictions_RN), abs=ABOUT)
    assert 0 <= churn(predictions_RN) <= 1


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([[0, 1]], r"got 1 runs of \[2\] inputs"),
        ([[0, 1], [0]], r"got 2 runs of \[1, 2\] inputs"),
        ([[], []], r"got 2 runs of \[0\] inputs"),
        ([], r"got 0 runs of \[\] inputs"),
    ],
)
def test_churn_refuses(runs, words):
    with pytest.raises(ValueError, match=f"^churn: predictions_RN must hold two or more runs.*{words}"):
        churn(runs)
