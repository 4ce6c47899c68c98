"""Scores of any number of classes: against scikit-learn, and what is not finite."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from stabviz.scores import multi_label_scores

NAMES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("seed", range(5))
def test_multi_label_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits_NC, labels_NC = rng.normal(size=(37, 5)), (rng.random((37, 5)) < 0.3).astype(int)
    logits_NC[:, 4], labels_NC[:, 4] = -1.0, 0  # a class that nobody has and nobody says
    says_NC, scores = (logits_NC > 0).astype(int), multi_label_scores(logits_NC, labels_NC, NAMES)
    for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        expected = metrics.f1_score(labels_NC, says_NC, average=average, zero_division=0)
        assert scores[name] == pytest.approx(expected, abs=1e-12)
    assert scores["precision"] == pytest.approx(metrics.precision_score(labels_NC, says_NC, average="micro"))
    assert scores["recall"] == pytest.approx(metrics.recall_score(labels_NC, says_NC, average="micro"))
    assert scores["subset_accuracy"] == pytest.approx(metrics.accuracy_score(labels_NC, says_NC))
    assert scores["hamming_loss"] == pytest.approx(metrics.hamming_loss(labels_NC, says_NC))
    loss = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits_NC), torch.tensor(labels_NC).double())
    assert scores["loss_nats"] == pytest.approx(float(loss), rel=1e-12)
    by_class = metrics.precision_recall_fscore_support(labels_NC, says_NC, zero_division=0)
    for c, name in enumerate(NAMES):
        row = scores["by_class"][name]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [column[c] for column in by_class]
        )


def test_a_run_that_says_what_is_usual_has_failed():
    labels_NC = np.array([[1, 0], [1, 1], [1, 0], [0, 0]])
    usual = multi_label_scores(np.tile([3.0, -3.0], (4, 1)), labels_NC, "ab")
    assert usual["micro_f1"] == usual["constant_f1"] == 0.75
    assert usual["failed"]
    assert not multi_label_scores(labels_NC - 0.5, labels_NC, "ab")["failed"]


def test_a_logit_that_is_not_finite_is_wrong_and_the_run_has_failed():
    scores = multi_label_scores([[np.nan, -1.0], [np.inf, 1.0]], [[0, 0], [1, 1]], "ab")
    assert (scores["hamming_loss"], scores["subset_accuracy"]) == (0.5, 0.0)
    assert np.isnan(scores["loss_nats"])
    assert (scores["non_finite_rows"], scores["failed"]) == (2, True)


@pytest.mark.parametrize(
    ("logits", "labels", "names", "message"),
    [
        ([], [], "ab", "logits_NC must be .* at least one row"),
        ([[1.0, 2.0]], [[1]], "ab", "labels_NC must be 0 or 1, of shape"),
        ([[1.0, 2.0]], [[1, 2]], "ab", "labels_NC must be 0 or 1"),
        ([[1.0, 2.0]], [[1, 0]], "aa", "names must be 2 distinct texts"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits, labels, names, message):
    with pytest.raises(ValueError, match=message):
        multi_label_scores(logits, labels, names)
