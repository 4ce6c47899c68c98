"""Predictions and quizzes: kept, shown beside the measurement, and nothing told too early."""

import pytest

from stabviz.course import Question, predict, quiz, reveal
from stabviz.course.progress import load


def words_of(page):
    return " ".join(child.value for child in page.widget.children if hasattr(child, "value") and child.value)


def test_prediction_is_kept_and_shown_beside_the_measurement():
    asked = predict("00-lr", "Which rate?", ["low", "high"])
    assert asked.answer is None
    asked.commit("high")
    assert predict("00-lr", "Which rate?", ["low", "high"]).note.startswith("You said high")
    page = words_of(reveal("00-lr", 0.00123456, answer="low", unit="nats", why="Because `lr` < 1."))
    assert "You predicted: high." in page
    assert "<b>0.001235 nats</b>" in page
    assert "the answer was: <b>low</b>" in page
    assert "<code>lr</code> &lt; 1." in page
    assert "stabviz-wrong" in page
    assert load()["predictions"]["00-lr"]["measured"] == "0.001235 nats"


def test_button_keeps_what_is_chosen_and_asks_for_a_choice_first():
    asked = predict("00-lr", "Which rate?", ["low", "high"])
    button = asked.widget.children[2].children[0]
    button.click()
    assert asked.note == "Choose one first."
    assert asked.answer is None
    asked._field.value = "low"
    button.click()
    assert asked.answer == "low"


def test_reveal_without_a_prediction_shows_the_measurement_alone():
    page = words_of(reveal("00-none", 2.5, unit="nats"))
    assert "No prediction was kept" in page
    assert "<b>2.5 nats</b>" in page
    assert "00-none" not in load()["predictions"]


def test_number_is_predicted_within_its_range():
    asked = predict("00-loss", "Where does it end?", low=0.0, high=5.0, unit="nats")
    asked._field.value = 3.25
    asked.widget.children[2].children[0].click()
    assert asked.answer == 3.25
    assert "You predicted: 3.25 nats." in words_of(reveal("00-loss", 3.0, unit="nats"))


def test_plain_text_of_both_is_the_same_with_and_without_a_prediction():
    before = predict("00-lr", "Which?", ["a", "b"])._words, reveal("00-lr", 1.0)._words
    predict("00-lr", "Which?", ["a", "b"]).commit("a")
    assert (predict("00-lr", "Which?", ["a", "b"])._words, reveal("00-lr", 1.0)._words) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either options or low and high"),
        ({"options": ["a", "b"], "low": 0.0, "high": 1.0}, "either options"),
        ({"options": ["a"]}, "two or more"),
        ({"options": ["a", "a"]}, "two or more"),
        ({"low": 0.0}, "low < high"),
        ({"low": 1.0, "high": 1.0}, "low < high"),
        ({"low": 0.0, "high": float("inf")}, "finite"),
    ],
)
def test_predict_refuses_what_cannot_be_answered(arguments, words):
    with pytest.raises(ValueError, match=words):
        predict("00-a", "Which?", **arguments)


QUESTIONS = [
    Question("Why `clip`?", ["speed", "spikes"], "spikes", why=("No: it costs time.", "It bounds a step.")),
    Question(
        "Why warm up?", ["early steps", "no reason"], "early steps", why="Adam's first steps are large."
    ),
    Question("Is NaN < 1?", ["yes", "no"], "no", why="Every comparison with NaN is false."),
]


def test_quiz_tells_nothing_before_a_choice_and_explains_each_after_it():
    asked = quiz("00", QUESTIONS)
    assert asked.explanations == ["", "", ""]
    assert "It bounds" not in str(asked.widget.get_state()) + asked._words
    asked.choose(0, "speed")
    assert asked.explanations[0] == "Not this one. No: it costs time."
    asked.choose(0, "spikes")
    assert asked.explanations[0] == "Yes. It bounds a step."
    asked.choose(2, "yes")
    assert asked.explanations[2] == "Not this one. Every comparison with NaN is false."
    assert asked.right == 1
    kept = load()["quizzes"]["00"]
    assert (kept["right"], kept["asked"], kept["answers"]) == (1, 3, ["spikes", None, "yes"])
    assert 'role="status"' in asked._notes[0].value
    assert "stabviz-right" in asked._notes[0].value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Question("a", ["b"], "b", "c"), "two or more"),
        (lambda: Question("a", ["b", "b"], "b", "c"), "two or more"),
        (lambda: Question("a", ["b", "c"], "d", "e"), "answer must be one of"),
        (lambda: Question("a", ["b", "c"], "b", ""), "why must be"),
        (lambda: Question("a", ["b", "c"], "b", ("d",)), "why must be"),
        (lambda: quiz("00", []), "one or more Question"),
    ],
)
def test_question_that_cannot_be_learned_from_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
