"""The words behind a picture say what the numbers say."""

import math

import numpy as np

from stabviz.trace import Trace
from stabviz.views import describe, table_of, text_table, unseen

S = 61


def make():
    loss = np.linspace(4, 2, S) * np.ones((7, 1))
    loss[5, 31:] = math.nan
    loss[4, 47:] = math.nan
    loss[6] = 4.0
    runs = [{"lr": 1e-3 if r < 4 else 1.0, "seed": r} for r in range(7)]
    return Trace(
        steps=range(S), signals={"loss_nats": loss}, runs=runs, config={"chance_nats": 4.0, "floor_nats": 1.0}
    )


def test_describe_states_the_fall_and_the_failures():
    assert describe(make()) == (
        "Loss of 7 runs (median) falls from 4 to 2 nats by step 60; "
        "2 of 7 diverged, 1 of 7 stalled, first non-finite at step 31."
    )


def test_describe_of_rising_flat_dead_and_empty_traces():
    def one(*values, **config):
        return Trace(steps=range(len(values)), signals={"loss_nats": [values]}, runs=[{}], config=config)

    assert describe(one(1.0, 9.0, chance_nats=4.0)).startswith(
        "Loss of 1 run rises from 1 to 9 nats by step 1; 1 of 1 diverged"
    )
    assert describe(one(1.0, 9.0)) == "Loss of 1 run rises from 1 to 9 nats by step 1."  # too short to judge
    assert describe(one(3.0, 3.0)).startswith("Loss of 1 run stays at 3 nats by step 1")
    assert describe(one(math.nan)) == (
        "Loss of 1 run is never finite; 1 of 1 diverged, first non-finite at step 0."
    )
    assert describe(one()) == "Loss of 1 run: no step yet."
    assert "from 9 to 1 units by" in describe(one(9.0, 1.0, loss_unit="units"))


def test_table_of_has_a_row_per_group_with_quantiles_and_verdicts():
    low, high = table_of(make(), by="lr")
    assert low == {
        "lr": 1e-3,
        "runs": 4,
        "final median": low["10 %"],
        "10 %": low["10 %"],
        "90 %": low["10 %"],
        "verdicts": "healthy 4",
        "first non-finite step": None,
    }
    assert high["runs"] == 3
    assert high["final median"] == math.inf
    assert high["90 %"] == math.inf
    assert high["verdicts"] == "diverged 2, stalled 1"
    assert high["first non-finite step"] == 31


def test_a_trace_without_a_loss_has_a_table_and_a_description():
    trace = Trace(steps=range(2), signals={"lr": [[0.5, 0.25]]}, runs=[{"seed": 0}])
    (row,) = table_of(trace, signal="lr")
    assert (row["final median"], row["verdicts"]) == (0.25, "")
    assert describe(trace, signal="lr") == "Learning rate of 1 run falls from 0.5 to 0.25 by step 1."


def test_text_table_aligns_and_says_what_it_leaves_out():
    assert text_table([]) == "(no rows)"
    assert text_table([{"a": 1, "bb": None}, {"a": 22, "c": "x"}]).splitlines() == [
        " a  bb  c",
        " 1   -  -",
        "22   -  x",
    ]
    assert text_table([{"a": 1}] * 5, most=3).splitlines()[-1] == "and 2 more rows"


def test_text_table_sets_an_interval_in_the_column_of_its_median():
    rows = [{"run": "broken", "loss": 2.7431, "loss low": 2.7139, "loss high": float("inf"), "low": 1}]
    assert text_table(rows).split() == "run loss low broken 2.74 [2.71, inf] 1".split()
    assert text_table([{"share": -0.0, "share low": -0.0, "share high": 0.5}]).split("\n")[1] == "0 [0, 0.5]"


def test_text_table_wraps_the_widest_text_inside_its_column():
    change = "optimizer only_the_start_rounded, init_scale 0.3, init_scale_of writers"
    page = text_table(
        [{"run": "the first weights alone in bfloat16", "what it changes": change, "loss": 2.5}]
    )
    lines = page.splitlines()
    assert max(map(len, lines)) <= 96
    assert len(lines) > 2
    column = lines[0].index("what it changes")
    assert " ".join(line[column:].removesuffix("2.5").strip() for line in lines[1:]) == change
    assert max(map(len, text_table([{"run": "x y " * 50}], width=math.inf).splitlines())) > 190
    assert text_table([{"run": "x" * 200}]).splitlines()[1] == "x" * 96  # nothing of a word is lost


def test_table_of_takes_labels_that_hold_commas_and_equals_signs():
    trace = Trace(steps=[0], signals={"loss_nats": [[1.0]]}, runs=[{"note": "a=1, b=2"}])
    (row,) = table_of(trace, by="note")
    assert row["note"] == "a=1, b=2"


def test_unseen_names_what_no_verdict_saw_once_for_all_runs():
    said = unseen(make())
    assert said.startswith("Not seen by the verdicts: ")
    assert said.count("another rate, seed or more steps") == 1
    assert unseen(Trace(steps=[], signals={"loss_nats": np.empty((1, 0))}, runs=[{}])) == ""
