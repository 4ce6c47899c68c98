"""Knobs and their controls: field and slider agree, and the value shown is the value used."""

import pytest

from stabviz.views.knobs import Choice, Control, Knob

LR = Knob("lr", 3e-3, low=1e-4, high=1.0, log=True, unit="per step", label="learning rate")


def moved(knob):
    calls = []
    control = Control(knob, lambda: calls.append(control.value))
    return control, calls


@pytest.mark.parametrize(
    ("knob", "kind", "probes"),
    [
        (LR, "real", (1e-4, 0.01, 1.0)),
        (Knob("layers", 2, low=1, high=7), "integer", (1, 4, 7)),
        (Knob("width", 16, low=8, high=128, log=True), "integer", (8, 32, 128)),
        (Knob("beta", 0.9, low=0.0, high=0.98), "real", (0.0, 0.49, 0.98)),
        (Knob("beta", 1, low=0.5, high=2), "real", (0.5, 1.25, 2.0)),
        (Knob("clip", True), "switch", (False, True)),
    ],
)
def test_kind_and_probes(knob, kind, probes):
    assert knob.kind == kind
    assert knob.ends_and_middle() == probes
    assert [type(value) for value in knob.ends_and_middle()] == [type(probe) for probe in probes]


@pytest.mark.parametrize(
    "knob",
    [
        LR,
        Knob("layers", 2, low=1, high=7),
        Knob("beta", 0.9, low=0.0, high=0.98),
        Knob("width", 16, low=8, high=128, log=True),
    ],
)
def test_slider_and_field_agree_and_each_move_is_reported_once(knob):
    control, calls = moved(knob)
    low, middle, high = knob.ends_and_middle()
    control._slider.value = high
    assert control._field.value == control.value == high
    assert calls == [high]
    control._field.value = low
    assert control._slider.value == pytest.approx(low, rel=1e-12)  # a log slider computes 10**log10(low)
    assert calls == [high, low]
    control.assign(middle)
    assert control._field.value == middle
    assert control._slider.value == pytest.approx(middle, rel=0.05)
    assert calls == [high, low], "assign must not report"


def test_slider_and_field_have_one_description_and_do_not_report_while_dragged():
    control, _ = moved(LR)
    assert control._slider.description == control._field.description == "learning rate"
    assert control._slider.continuous_update is False
    assert "0.0001 to 1 per step" in control.box.children[-1].value


def test_slider_gives_a_number_that_can_be_read():
    control, calls = moved(LR)
    control._slider.value = 10**-2.5
    assert calls == [0.00316]
    assert control._field.value == 0.00316


def test_choice_and_switch_report_their_value():
    control, calls = moved(Choice("norm", "pre", ["pre", "post"]))
    control._field.value = "post"
    switch, switched = moved(Knob("clip", True))
    switch._field.value = False
    assert (calls, switched) == (["post"], [False])


def test_choice_keeps_options_that_are_no_text():
    control, calls = moved(Choice("layers", 2, (2, 4)))
    control._field.value = 4
    assert calls == [4]
    assert Choice("layers", 2, (2, 4)).ends_and_middle() == (2, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Knob("lr", 0.1), "low and high of 'lr'"),
        (lambda: Knob("lr", 0.1, low=1.0, high=0.0), "low < high"),
        (lambda: Knob("lr", 0.1, low=0.0, high=1.0, log=True), "must be > 0 with log=True"),
        (lambda: Knob("lr", 2.0, low=0.5, high=1.0), r"default of 'lr' must be in \[0.5, 1\]; got 2.0"),
        (lambda: Choice("norm", "none", ["pre", "post"]), "norm must be one of"),
        (lambda: Knob("layers", 2, low=1, high=7).accept(2.5), "whole number"),
        (lambda: Knob("layers", 2, low=1, high=7).accept("2"), "must be in"),
        (lambda: Knob("clip", True).accept(1), "True or False"),
    ],
)
def test_errors_name_the_knob(make, words):
    with pytest.raises(ValueError, match=words):
        make()
