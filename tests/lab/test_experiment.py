import math

import numpy as np
import pytest

from stabviz.lab import Experiment, Run, grid
from stabviz.lab.experiment import NUMERIC


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
    assert not names & NUMERIC
    assert {"width", "norm", "optimizer"} <= names


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
        ({"sharpness": True}, "sharpness must be False unless task is 'regression'; got task 'text'"),
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
