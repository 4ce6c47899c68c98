import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from stabviz.scores import classification_scores, majority_share

NAMES = ("billing", "delivery", "login")
RATIOS = ("precision", "recall", "f1")
ABOUT = 1e-12  # float64 sums of a few hundred terms


def random_rows(seed, N=101, C=7):
    """Logits that are right more often than not; the last class neither occurs nor is predicted."""
    generator = np.random.default_rng(seed)
    labels_N = generator.integers(0, C - 1, N)
    logits_NC = generator.normal(size=(N, C))
    logits_NC[np.arange(N), labels_N] += 1.5
    logits_NC[:, -1] = -9.0
    return logits_NC, labels_N, [f"class {c}" for c in range(C)]


def test_classification_scores_by_hand():
    # rows: right, right, delivery taken for billing, login right with odds 3 : 1 : 1
    logits_NC = np.log([[4.0, 1.0, 1.0], [2.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 3.0]])
    scores = classification_scores(logits_NC, [0, 0, 1, 2], NAMES)
    assert scores["accuracy"] == 0.75
    assert scores["confusion"] == [[2, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert scores["by_class"]["billing"] == {
        "precision": 2 / 3,
        "recall": 1.0,
        "f1": 0.8,
        "support": 2,
        "predicted": 3,
    }
    assert scores["by_class"]["delivery"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
        "predicted": 0,
    }
    assert scores["macro_f1"] == pytest.approx((0.8 + 0 + 1) / 3, abs=ABOUT)
    by_row = [math.log(6 / 4), math.log(4 / 2), math.log(4 / 1), math.log(5 / 3)]
    assert scores["loss_nats"] == pytest.approx(sum(by_row) / 4, abs=ABOUT)
    # confidences 2/3, 1/2, 1/2, 3/5 in bins (9/15, 10/15], (7/15, 8/15] twice, (8/15, 9/15]
    assert scores["ece"] == pytest.approx((1 / 3 + abs(1 - 2 * 0.5) + 0.4) / 4, abs=ABOUT)
    assert (scores["rows"], scores["non_finite_rows"], scores["majority_share"]) == (4, 0, 0.5)
    assert scores["failed"] is False
    assert scores["classes"] == list(NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_classification_scores_equal_scikit_learn(seed):
    logits_NC, labels_N, names = random_rows(seed)
    scores = classification_scores(logits_NC, labels_N, names)
    predicted_N = logits_NC.argmax(axis=1)
    probabilities_NC = torch.softmax(torch.tensor(logits_NC), dim=1).numpy()
    every = range(len(names))
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels_N, predicted_N), abs=ABOUT)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels_N, predicted_N, average="macro"), abs=ABOUT)
    assert scores["confusion"] == confusion_matrix(labels_N, predicted_N, labels=every).tolist()
    assert scores["loss_nats"] == pytest.approx(log_loss(labels_N, probabilities_NC, labels=every), abs=ABOUT)
    known = precision_recall_fscore_support(labels_N, predicted_N, labels=every, zero_division=0.0)
    for column, values in zip((*RATIOS, "support"), known, strict=True):
        assert [row[column] for row in scores["by_class"].values()] == pytest.approx(
            values.tolist(), abs=ABOUT
        )


def test_classification_scores_class_that_never_occurs_does_not_count():
    logits_NC, labels_N, names = random_rows(3)
    scores = classification_scores(logits_NC, labels_N, names)
    assert scores["by_class"]["class 6"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
        "predicted": 0,
    }
    fewer = classification_scores(logits_NC[:, :6], labels_N, names[:6])
    assert scores["macro_f1"] == fewer["macro_f1"]


def test_classification_scores_class_that_is_only_predicted_counts_as_zero():
    scores = classification_scores([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 0], NAMES)
    assert scores["by_class"]["delivery"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
        "predicted": 1,
    }
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0) / 2, abs=ABOUT)


def test_classification_scores_take_tensors_of_every_precision():
    logits_NC, labels_N, names = random_rows(1)
    exact = classification_scores(logits_NC, labels_N, names)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = classification_scores(
            torch.tensor(logits_NC, dtype=dtype, requires_grad=True), torch.tensor(labels_N), names
        )
        # bfloat16 keeps 8 bits: logits up to 9 move by 2^-5, and the mean of the losses by far less
        assert rounded["loss_nats"] == pytest.approx(exact["loss_nats"], abs=0.02)


def test_classification_scores_row_that_is_not_finite_is_wrong():
    logits_NC = [[np.nan, 5.0, 0.0], [3.0, 0.0, 0.0], [np.inf, 0.0, 0.0], [0.0, 0.0, 2.0]]
    scores = classification_scores(logits_NC, [1, 0, 0, 2], NAMES)
    assert scores["accuracy"] == 0.5
    assert scores["failed"] is True
    assert scores["non_finite_rows"] == 2
    assert math.isnan(scores["loss_nats"])
    assert math.isnan(scores["ece"])
    assert np.sum(scores["confusion"]) == 2
    assert scores["by_class"]["delivery"]["recall"] == 0.0
    assert scores["by_class"]["billing"]["recall"] == 0.5


def test_classification_scores_large_logits_stay_finite():
    scores = classification_scores([[1e4, 0.0], [0.0, 1e4]], [0, 0], ["no", "yes"])
    assert scores["loss_nats"] == 5e3


def test_classification_scores_are_plain_data():
    logits_NC, labels_N, names = random_rows(0)
    scores = classification_scores(logits_NC, labels_N, names)
    assert json.loads(json.dumps(scores)) == scores


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_classification_scores_do_not_depend_on_the_order_of_rows(seed, random):
    logits_NC, labels_N, names = random_rows(seed, N=23)
    order = list(range(23))
    random.shuffle(order)
    scores = classification_scores(logits_NC, labels_N, names)
    shuffled = classification_scores(logits_NC[order], labels_N[order], names)
    for key in ("confusion", "by_class", "accuracy", "macro_f1", "majority_share"):
        assert shuffled[key] == scores[key]
    assert shuffled["loss_nats"] == pytest.approx(scores["loss_nats"], abs=ABOUT)
    assert shuffled["ece"] == pytest.approx(scores["ece"], abs=ABOUT)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(7)))
def test_classification_scores_do_not_depend_on_the_order_of_classes(seed, order):
    logits_NC, labels_N, names = random_rows(seed, N=23)
    scores = classification_scores(logits_NC, labels_N, names)
    renamed_N = np.argsort(order)[labels_N]
    moved = classification_scores(logits_NC[:, order], renamed_N, [names[c] for c in order])
    assert moved["by_class"] == scores["by_class"]
    for key in ("accuracy", "macro_f1", "ece", "loss_nats"):
        assert moved[key] == pytest.approx(scores[key], abs=ABOUT)


@pytest.mark.parametrize(
    ("logits", "labels", "names", "words"),
    [
        (
            np.zeros((0, 3)),
            np.zeros(0, int),
            NAMES,
            r"logits_NC must be \(N, C\) with at least one row; got \(0, 3\)",
        ),
        (np.zeros(3), [0, 1, 2], NAMES, r"logits_NC must be \(N, C\) .* got \(3,\)"),
        (np.zeros((2, 3)), [0], NAMES, r"labels_N must be 2 integers, one a row; got int64 \(1,\)"),
        (np.zeros((2, 3)), [0.0, 1.0], NAMES, r"labels_N must be 2 integers, one a row; got float64 \(2,\)"),
        (np.zeros((2, 3)), [0, 3], NAMES, r"labels_N must be in 0\.\.2; got 3"),
        (np.zeros((2, 3)), [0, -100], NAMES, r"labels_N must be in 0\.\.2; got -100"),
        (
            np.zeros((2, 3)),
            [0, 1],
            ["a", "b"],
            r"names must be 3 distinct texts, one a class; got \['a', 'b'\]",
        ),
        (np.zeros((2, 3)), [0, 1], ["a", "b", "a"], r"names must be 3 distinct texts"),
    ],
)
def test_classification_scores_refuse(logits, labels, names, words):
    with pytest.raises(ValueError, match=f"^classification_scores: {words}"):
        classification_scores(logits, labels, names)


def test_majority_share_by_hand():
    assert majority_share(np.array([2, 2, 0, 1, 2])) == 0.6
    with pytest.raises(ValueError, match="majority_share: labels_N must hold at least one label"):
        majority_share([])
