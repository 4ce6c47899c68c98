"""Trace: shapes are checked, what is held cannot change, selection and final values are exact."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace, concatenate

R, S = 5, 11
NAN, INF = math.nan, math.inf


def make(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "steps": np.arange(S) * 3,
        "signals": {
            "loss_nats": rng.normal(3, 0.1, (R, S)).astype(np.float32),
            "param_norm": rng.random((R, S)),
        },
        "runs": [{"lr": lr, "seed": r % 2} for r, lr in enumerate([1e-3, 1e-3, 1e-2, 1e-2, 1e-1])],
        "config": {"floor_nats": 2.0, "nested": {"betas": (0.9, 0.95)}},
        "events": [{"run": 3, "step": 6, "kind": "non_finite", "signal": "loss_nats"}],
    }
    return Trace(**(fields | changes))


def test_trace_copies_arrays_and_keeps_their_dtype():
    values = np.ones((R, S), np.float32)
    trace = make(signals={"loss_nats": values})
    values[:] = 7
    assert trace["loss_nats"].dtype == np.float32
    assert np.all(trace["loss_nats"] == 1)
    with pytest.raises(ValueError, match="read-only"):
        trace["loss_nats"][0, 0] = 2


def test_trace_turns_settings_into_plain_data():
    trace = make(
        runs=[{"lr": np.float32(0.5), "on": np.bool_(True)}] * R, config={"betas": (0.9, np.float64(0.95))}
    )
    assert trace.runs[0] == {"lr": 0.5, "on": True}
    assert type(trace.runs[0]["lr"]) is float
    assert trace.config == {"betas": [0.9, 0.95]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"signals": {"loss_nats": np.ones((S, R))}},
            r"signals\['loss_nats'\] must have shape \(R, S\) = \(5, 11\)",
        ),
        ({"signals": {"loss_nats": np.ones((R, S - 1))}}, r"must have shape .* got \(5, 10\)"),
        ({"signals": {"loss_nats": [["a"] * S] * R}}, r"must be an array of numbers .* got list"),
        ({"signals": {"step": np.ones((R, S))}}, r"named by a text other than 'run' and 'step'; got 'step'"),
        ({"steps": np.zeros(S, int)}, r"steps must increase strictly; got \[0, 0\] at position 0"),
        ({"steps": np.arange(S) / 2}, r"steps must be integers of shape \(S,\); got float64"),
        ({"runs": []}, r"runs must be a list of one or more dicts of labels; got \[\]"),
        ({"runs": [1] * R}, r"runs must be a list of one or more dicts"),
        ({"config": {"model": object()}}, r"config\['model'\] must be plain data"),
        ({"config": {1: 2}}, r"config must have text keys; got \[1\]"),
        ({"events": [{"run": R, "step": 0, "kind": "non_finite"}]}, r"events must name a run in 0..4"),
        ({"events": [{"run": 0, "kind": "non_finite"}]}, r"events must each have int 'run', int 'step'"),
    ],
)
def test_trace_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_getitem_names_the_known_signals():
    with pytest.raises(KeyError, match="Did you mean 'loss_nats'"):
        make()["loss_nat"]


def test_select_matches_numbers_lists_and_moves_events():
    trace = make()
    chosen = trace.select(lr=[1e-2, np.float32(1e-1)])
    assert [run["seed"] for run in chosen.runs] == [0, 1, 0]
    assert np.array_equal(chosen["param_norm"], trace["param_norm"][2:])
    assert chosen.events == [{"run": 1, "step": 6, "kind": "non_finite", "signal": "loss_nats"}]
    assert trace.select(lr=1e-2, seed=1).n_runs == 1
    assert trace.select(seed=0).events == []


def test_select_tells_what_there_is():
    with pytest.raises(
        ValueError, match=r"match a run; got {'lr': 0.5}, known {'lr': \['0.001', '0.01', '0.1'\]}"
    ):
        make().select(lr=0.5)
    with pytest.raises(ValueError, match=r"key must be one of \['lr', 'seed'\]; got 'optimizer'"):
        make().select(optimizer="sgd")


def test_select_tells_booleans_from_numbers():
    trace = make(runs=[{"qk": qk} for qk in (True, False, 1, 0, None)])
    assert [trace.select(qk=value).n_runs for value in (True, False, 1, 0, None)] == [1] * 5


def test_labels_are_numbers_or_objects():
    assert make().labels("lr").tolist() == [1e-3, 1e-3, 1e-2, 1e-2, 1e-1]
    partly = make(runs=[{"lr": 1.0}, {}, {}, {}, {}])
    assert partly.labels("lr").tolist() == [1.0, None, None, None, None]


def test_final_is_the_mean_of_the_last_share():
    values = np.arange(R * S, dtype=float).reshape(R, S)
    trace = make(signals={"loss_nats": values})
    # 0.27 x 11 = 2.97, so the last three
    assert trace.final(share=0.27).tolist() == values[:, -3:].mean(axis=1).tolist()
    assert trace.final(share=1e-9).tolist() == values[:, -1].tolist()


def test_final_is_infinite_for_a_run_that_ended_non_finite_by_loss_or_gradient():
    loss, norm = np.ones((R, S)), np.ones((R, S))
    loss[1, 7:] = NAN
    norm[2, 10] = INF
    loss[3, 10] = -INF
    loss[4, 5] = NAN
    trace = make(signals={"loss_nats": loss, "grad_norm_preclip": norm})
    assert trace.final().tolist() == [1, INF, INF, INF, 1]
    assert [trace.non_finite_step(r) for r in range(R)] == [None, 21, 30, 30, None]
    assert np.flatnonzero(trace.non_finite(4)).tolist() == [5]
    nothing = Trace(steps=[], signals={"loss_nats": [[]]}, runs=[{}])
    assert (nothing.non_finite_step(0), nothing.non_finite(0).tolist()) == (None, [])


def test_final_refuses_a_share_outside():
    for share in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
            make().final(share=share)
    empty = make(steps=[], signals={"loss_nats": np.ones((R, 0))})
    with pytest.raises(ValueError, match="must hold at least one step"):
        empty.final()


def test_table_has_a_row_per_run():
    loss = np.full((R, S), 3.0)
    loss[2, 4:] = NAN
    row = make(signals={"loss_nats": loss}).table()[2]
    assert row == {
        "run": 2,
        "lr": 1e-2,
        "seed": 0,
        "initial_loss_nats": 3.0,
        "final_loss_nats": INF,
        "non_finite_step": 12,
    }


def test_concatenate_makes_labels_of_what_differs():
    one = make(config={"norm": "pre", "width": 32})
    two = make(config={"norm": "post", "width": 32})
    both = concatenate([one, two])
    assert both.config == {"width": 32}
    assert both.labels("norm").tolist() == ["pre"] * R + ["post"] * R
    assert [event["run"] for event in both.events] == [3, 3 + R]
    assert np.array_equal(both.select(norm="post")["loss_nats"], two["loss_nats"])


def test_concatenate_refuses_what_does_not_join():
    with pytest.raises(ValueError, match="must hold at least one Trace"):
        concatenate([])
    with pytest.raises(ValueError, match="equal steps"):
        concatenate([make(), make(steps=np.arange(S))])
    with pytest.raises(ValueError, match=r"equal signals; only one of 0 and 1 has \['param_norm'\]"):
        concatenate([make(), make(signals={"loss_nats": np.ones((R, S))})])


def test_equals_sees_every_difference():
    assert make().equals(make())
    loss = make()["loss_nats"]
    assert not make().equals(make(signals={"loss_nats": loss, "param_norm": np.zeros((R, S))}))
    assert not make().equals(
        make(signals={"loss_nats": loss.astype(float), "param_norm": make()["param_norm"]})
    )
    assert not make().equals(make(config={"floor_nats": 2}))
    assert not make().equals(make(events=[]))
    assert not make().equals(make(steps=np.arange(S)))
