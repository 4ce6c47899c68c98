"""Claims: one line that is the same everywhere, one that nbval blanks, and no way to claim a NaN."""

import configparser
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stabviz.course import ClaimFailed, above, at_least, at_most, below, claim
from stabviz.course.progress import load
from stabviz.files import loads


def sanitised(text):
    """Blank what nbval blanks, the way it does."""
    rules = configparser.RawConfigParser()
    rules.read(Path(__file__).parents[1] / "nbval_sanitize.cfg", encoding="utf-8")
    for section in rules.sections():
        text = re.sub(rules.get(section, "regex"), rules.get(section, "replace"), text)
    return text


def test_claim_prints_the_statement_and_below_it_the_measurement(capsys):
    claim("warm-up helps", True, measured={"gain": 0.31234567, "seeds": 8})
    assert capsys.readouterr().out == "✓ claim: warm-up helps\n  measured: gain 0.3123, seeds 8\n"


def test_two_machines_agree_after_the_sanitiser_and_two_statements_do_not(capsys):
    claim("a", np.True_, measured=1.25)
    claim("b", True, measured=[1.0, 2.0])
    here = capsys.readouterr().out
    claim("a", True, measured=7.5)
    claim("b", True, measured=[3.0, 4.0])
    there = capsys.readouterr().out
    assert here != there
    assert sanitised(here) == sanitised(there)
    claim("c", True, measured=1.25)
    assert sanitised(capsys.readouterr().out) not in sanitised(here)


def test_claim_that_does_not_hold_raises_with_statement_and_measurement(capsys):
    with pytest.raises(ClaimFailed, match=r"does not hold here: warm-up helps\n  measured: gain -0.5"):
        claim("warm-up helps", False, measured={"gain": -0.5})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "measured",
    [float("nan"), {"a": 1.0, "b": np.float32("nan")}, [1.0, [float("nan")]], np.array([1.0, np.nan])],
)
def test_nan_is_refused_also_where_the_comparison_came_out_true(measured):
    with pytest.raises(ClaimFailed, match="NaN was measured"):
        claim("a", True, measured=measured)


def test_infinity_may_be_measured(capsys):
    claim("it diverges", True, measured=float("inf"))
    assert "measured: inf" in capsys.readouterr().out


@pytest.mark.parametrize("holds", [1, "yes", None, np.array([True, False]), [True]])
def test_holds_must_be_a_bool(holds):
    with pytest.raises(ValueError, match="holds must be True or False"):
        claim("a", holds, measured=1.0)


@pytest.mark.parametrize("statement", ["", "  ", "two\nlines", 3])
def test_statement_must_be_one_line(statement):
    with pytest.raises(ValueError, match="statement must be one line"):
        claim(statement, True, measured=1.0)


def test_claim_is_recorded(capsys):
    claim("kept", True, measured=1.5)
    assert load()["claims"]["kept"]["measured"] == "1.5"


def test_bounds_hold_for_the_worst_value_and_know_its_margin():
    assert above([3.0, 2.5], [1.0, 2.0]).margins == (0.5,)
    assert below(torch.tensor([1.0, 4.0]), 3).margins == (-1.0,)
    assert not below([1.0, 4.0], 3)
    assert at_least(6, 6)
    assert not above(6, 6)
    assert at_most(6, 6)
    assert not below(6, 6)
    both = above(3, 1) & below(3, 2)
    assert both.margins == (2.0, -1.0)
    assert not both


@pytest.mark.parametrize("compare", [above, below, at_least, at_most])
def test_bounds_fail_on_nan_and_have_a_place_for_infinity(compare):
    assert not compare([1.0, np.nan], 0.0)
    assert not compare(1.0, np.nan)
    assert bool(compare(np.inf, 1.0)) == (compare in (above, at_least))
    assert bool(compare(np.inf, np.inf)) == (compare in (at_least, at_most))


def test_bounds_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"above: limit must be one number or \(2,\); got \(3,\)"):
        above([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="below: values must hold a number"):
        below([], 1)
    with pytest.raises(TypeError, match="& must join comparisons"):
        above(2, 1) & True


def test_claim_takes_bounds(capsys):
    claim("it is small", below([1.0, 2.0], 3), measured=2.0)
    assert capsys.readouterr().out.startswith("✓ claim: it is small")
    with pytest.raises(ClaimFailed, match="does not hold here: it is large"):
        claim("it is large", above(1.0, 3), measured=1.0)


def test_claims_are_logged_and_none_stops_the_lesson_where_a_log_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STABVIZ_CLAIMS", str(tmp_path / "log.jsonl"))
    claim("one", above(3, 1) & below(3, 2.5), measured=3)
    claim("two", True, measured=float("nan"))
    claim("three", above(3, 1), measured=3)
    lines = [loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["held"] for line in lines] == [False, False, True]
    assert lines[0]["margins"] == [2.0, -0.5]
    assert lines[1]["margins"] == []
    assert "does not hold here: one" in capsys.readouterr().out
    assert list(load()["claims"]) == ["three"]
