import math

import numpy as np
import pytest

from stabviz.lab import Experiment, Run, grid
from stabviz.lab.experiment import KNOBS, numeric_knobs


def test_grid_makes_the_product_and_labels_what_varies():
    experiment = grid("markov", lr=[0.1, 0.2], seed=range(3), width=64)
    assert [run.lr for run in experiment.runs] == [0.1] * 3 + [0.2] * 3
    assert experiment.labels[4] == {"lr": 0.2, "seed": 1}
    assert {run.width for run in experiment.runs} == {64}
    assert experiment.shared["width"] == 64
    assert "lr" not in experiment.shared


def test_grid_takes_arrays_and_labels_a_list_of_one():
    experiment = grid(lr=np.logspace(-3, -1, 3), seed=[7])
    assert experiment.labels[0] == {"lr": 0.001, "seed": 7}
    assert all(type(run.lr) is float for run in experiment.runs)


def test_run_structure_leaves_out_the_numeric_knobs():
    names = {name for name, _ in Run().structure}
    assert not names & {name for name, knob in KNOBS.items() if knob.numeric}
    assert {"width", "norm", "optimizer"} <= names


def test_a_knob_is_declared_on_one_line_and_the_table_follows():
    """Adding a numeric knob needs one line of `Run`: no other module may list several of them by name."""
    import ast
    from pathlib import Path

    import stabviz.lab

    numeric = {name for name, knob in KNOBS.items() if knob.numeric}
    assert len(numeric) > 20
    assert set(numeric_knobs("optimizer")) == {"beta1", "beta2", "eps", "weight_decay", "bias_correction"}
    lists = []
    for path in Path(stabviz.lab.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                held = {item.value for item in node.elts if isinstance(item, ast.Constant)}
                lists += [(path.name, held)] if len(held & numeric) > 2 else []
    assert lists == []


def test_the_table_of_knobs_says_kind_default_unit_and_reader():
    assert (KNOBS["warmup_steps"].kind, KNOBS["warmup_steps"].default) == ("int", 20)
    assert (KNOBS["warmup_steps"].unit, KNOBS["warmup_steps"].reader) == ("updates", "schedule")
    readers = {"data", "model", "start", "objective", "fault", "clip", "optimizer", "schedule", "engine"}
    assert {knob.reader for knob in KNOBS.values()} == readers


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"learning_rate": 1}, "knob must be a field of Run; got 'learning_rate'"),
        ({"task": "sudoku"}, "task must be one of .* got 'sudoku'"),
        ({"lr": -1.0}, "lr must be a finite number of at least 0; got -1.0"),
        ({"lr": [1e-3, math.nan]}, "lr must be a finite number of at least 0; got nan"),
        ({"clip_norm": 0.0}, r"clip_norm must be > 0 \(inf is off\); got 0.0"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\); got 1.0"),
        ({"width": 2.5}, "width must be a whole number of at least 1; got 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"final_lr_share": 2}, r"final_lr_share must be in \[0, 1\]; got 2"),
        ({"steps": [5, 6]}, "steps must be one number for all runs; got"),
        ({"seed": []}, "a knob's list must hold a value"),
        (
            {"sharpness": True},
            "sharpness must be False unless task is 'regression' or model recurrent; got True",
        ),
        ({"linearise_step": 3}, "linearise_step must be -1 unless task is 'regression'; got 3"),
        (
            {"detach_state": True},
            r"detach_state must be False unless model is one of \('lstm', 'rnn'\); got True",
        ),
        (
            {"task": "bowl", "model": "rnn", "recurrent_scale": 2.0},
            "recurrent_scale must be 1 unless model is",
        ),
        ({"sharpness_every": 0}, "sharpness_every must be a whole number of at least 1; got 0"),
        ({"optimizer": "lion"}, "optimizer must be one of .* got 'lion'"),
    ],
)
def test_grid_refuses(knobs, message):
    with pytest.raises(ValueError, match=message):
        grid(**knobs)


def test_experiment_refuses_runs_without_labels():
    with pytest.raises(
        ValueError, match="runs must be one or more, with one label each; got 1 runs, 0 labels"
    ):
        Experiment(runs=(Run(),), labels=())
