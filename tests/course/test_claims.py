"""Claims: one line that is the same everywhere, one that nbval blanks, and no way to claim a NaN."""

import configparser
import re
from pathlib import Path

import numpy as np
import pytest

from stabviz.course import ClaimFailed, claim
from stabviz.course.progress import load


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
