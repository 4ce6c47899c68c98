import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from stabviz.scores import entity_scores

ABOUT = 1e-12  # float64 sums of a few hundred terms
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
