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

from stabviz.scores.scores import (
    churn,
    classification_scores,
    entity_scores,
    expected_calibration_error,
    failed,
    headline,
    majority_share,
    spread,
)

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


def test_calibration_error_by_hand():
    # bin (13/15, 14/15]: confidences 0.9 and 0.92, one right: gap |0.5 - 0.91|, two rows of five
    # bin (7/15, 8/15]: 0.5, right: gap 0.5; bin (9/15, 10/15]: 0.64 and 0.66, both right: gap 0.35
    sure_N = np.array([0.9, 0.92, 0.5, 0.64, 0.66])
    labels_N = [0, 1, 0, 0, 0]
    error = expected_calibration_error(np.stack([sure_N, 1 - sure_N], axis=1), labels_N)
    assert error == pytest.approx((2 * 0.41 + 1 * 0.5 + 2 * 0.35) / 5, abs=ABOUT)


def test_calibration_error_of_one_bin_is_confidence_less_accuracy():
    logits_NC, labels_N, _ = random_rows(2)
    probabilities_NC = torch.softmax(torch.tensor(logits_NC), dim=1).numpy()
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


TRUE = [
    "B-PER I-PER O O B-ORG".split(),  # found, then taken for a place
    "O B-LOC O B-PRODUCT I-PRODUCT".split(),  # missed, then cut short
    "O O O".split(),  # one invented
]
SAID = ["B-PER I-PER O O B-LOC".split(), "O O O B-PRODUCT O".split(), "B-PER O O".split()]


def test_entity_scores_by_hand():
    scores = entity_scores(TRUE, SAID)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (1 / 4, 1 / 4, 1 / 4)
    assert (scores["support"], scores["predicted"]) == (4, 4)
    assert scores["by_type"]["PER"] == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": 2 / 3,
        "support": 1,
        "predicted": 2,
    }
    for name, support, predicted in (("ORG", 1, 0), ("LOC", 1, 1), ("PRODUCT", 1, 1)):
        assert scores["by_type"][name] == {
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "support": support,
            "predicted": predicted,
        }
    assert scores["tag_accuracy"] == 9 / 13  # a quarter of the entities, and yet 69 % of the words
    assert (scores["rows"], scores["words"]) == (3, 13)


def spans(tags):
    """Entities of one sentence as (type, first, last), read anew for this test."""
    found, start = set(), None
    for at, tag in enumerate([*tags, "O"]):
        goes_on = start is not None and tag == f"I-{tags[start][2:]}"
        if start is not None and not goes_on:
            found.add((tags[start][2:], start, at - 1))
            start = None
        if tag != "O" and not goes_on:
            start = at
    return found


TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
SENTENCES = st.lists(
    st.integers(0, 7).flatmap(lambda n: st.tuples(*[st.lists(TAG, min_size=n, max_size=n)] * 2)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(SENTENCES)
def test_entity_scores_equal_sets_of_spans(pairs):
    true, said = zip(*pairs, strict=True)
    scores = entity_scores(true, said)
    wanted = {(row, *span) for row, tags in enumerate(true) for span in spans(tags)}
    got = {(row, *span) for row, tags in enumerate(said) for span in spans(tags)}
    both = len(wanted & got)
    assert (scores["support"], scores["predicted"]) == (len(wanted), len(got))
    assert scores["precision"] == (both / len(got) if got else 0.0)
    assert scores["recall"] == (both / len(wanted) if wanted else 0.0)
    assert scores["f1"] == (2 * both / (len(wanted) + len(got)) if both else 0.0)
    assert sum(row["support"] for row in scores["by_type"].values()) == len(wanted)
    words_true, words_said = sum(true, []), sum(said, [])
    if words_true:  # what flattening says
        assert scores["tag_accuracy"] == pytest.approx(accuracy_score(words_true, words_said), abs=ABOUT)


@settings(max_examples=50, deadline=None)
@given(SENTENCES, st.randoms(use_true_random=False))
def test_entity_scores_do_not_depend_on_the_order_of_sentences(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert entity_scores(*zip(*shuffled, strict=True)) == entity_scores(*zip(*pairs, strict=True))


def test_entity_scores_of_nothing_found():
    scores = entity_scores([["B-PER", "I-PER", "O", "O"]], [["O", "O", "O", "O"]])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.0, 0.0, 0.0)
    assert scores["tag_accuracy"] == 0.5
    assert scores["failed"] is True
    assert entity_scores(TRUE, SAID)["failed"] is False


def test_entity_scores_of_no_entity_and_no_word():
    scores = entity_scores([["O", "O"], []], [["O", "O"], []])
    assert (scores["f1"], scores["tag_accuracy"], scores["by_type"]) == (0.0, 1.0, {})
    assert entity_scores([[]], [[]])["tag_accuracy"] == 0.0


def test_entity_scores_of_perfect_tags_are_one():
    scores = entity_scores(TRUE, TRUE)
    assert (scores["precision"], scores["recall"], scores["f1"], scores["tag_accuracy"]) == (
        1.0,
        1.0,
        1.0,
        1.0,
    )
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize(
    ("true", "said", "words"),
    [
        ([], [], "as many sentences as true, one or more; got 0 and 0"),
        ([["O"]], [["O"], ["O"]], "as many sentences as true, one or more; got 2 and 1"),
        (
            [["O"], ["O", "O"]],
            [["O"], ["O"]],
            "predicted must hold one tag a word; got 1 tags for 2 words in sentence 1",
        ),
        ([["O"]], [["PER"]], "a tag must be O, B-TYPE or I-TYPE; got 'PER' in sentence 0"),
        ([["B-"]], [["O"]], "a tag must be O, B-TYPE or I-TYPE; got 'B-' in sentence 0"),
    ],
)
def test_entity_scores_refuse(true, said, words):
    with pytest.raises(ValueError, match=f"^entity_scores: .*{words}"):
        entity_scores(true, said)


def test_headline_is_accuracy_or_entity_f1():
    logits_NC, labels_N, names = random_rows(0)
    scores = classification_scores(logits_NC, labels_N, names)
    assert headline(scores) == ("accuracy", scores["accuracy"])
    assert headline(entity_scores(TRUE, SAID)) == ("f1", 0.25)
    with pytest.raises(
        ValueError, match=r"headline: scores must hold 'accuracy' or 'f1'; got \['loss_nats'\]"
    ):
        headline({"loss_nats": 0.0})


def test_majority_share_by_hand():
    assert majority_share(np.array([2, 2, 0, 1, 2])) == 0.6
    with pytest.raises(ValueError, match="majority_share: labels_N must hold at least one label"):
        majority_share([])


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
