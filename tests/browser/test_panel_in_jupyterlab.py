"""A panel in real JupyterLab, moved by keyboard, with comms on subshells (its default) and off."""

import time

import pytest

RUN = """
import time
import numpy as np
from stabviz.trace import Trace
from stabviz.views import Choice, Knob, panel

def run(lr, layers=2, clip=True, norm="pre"):
    if lr > 0.9:
        raise ValueError("lr is too large for <this> test")
    for done in range(10, 101, 10):
        time.sleep(0.04)
        steps = np.arange(0, done, 2)
        fall = 4 * np.exp(-lr * steps / 5)
        loss = np.stack([fall + 0.1 * seed + 0.2 * np.sin(steps / 9 + seed) for seed in range(8)])
        yield Trace(steps=steps, signals={"loss_nats": loss, "grad_norm_preclip": loss ** 2},
                    runs=[{"seed": seed} for seed in range(8)],
                    config={"steps": 100, "lr": lr, "floor_nats": 0.1, "chance_nats": 4.2})
"""
SHOW = """panel(run, [Knob("lr", 0.03, low=1e-3, high=1.0, log=True, label="learning rate"),
            Knob("layers", 2, low=1, high=6), Knob("clip", True), Choice("norm", "pre", ["pre", "post"])],
      title="Eight seeds at once")"""
BOTH = pytest.mark.parametrize("comms", ["perCommTarget", "disabled"])


def keys(panel, knob, key, times=1):
    panel.slider(knob).focus()
    for _ in range(times):
        panel.page.keyboard.press(key)


@BOTH
def test_slider_moved_by_keyboard_changes_the_drawn_curve(open_notebook, comms):
    notebook = open_notebook([RUN, SHOW], comms_over_subshells=comms)
    notebook.run_all()
    panel = notebook.panel()
    panel.wait_status("^ready")
    before, field = panel.curves(), panel.field("lr").input_value()
    assert before
    keys(panel, "lr", "ArrowRight")
    began_s = time.monotonic()
    notebook.page.wait_for_function(
        "old => document.querySelector('.stabviz-panel svg[role=img]').outerHTML !== old",
        arg=panel.root.locator("svg[role=img]").evaluate("each => each.outerHTML"))
    print(f"first curve {1000 * (time.monotonic() - began_s):.0f} ms after the move, comms {comms}")
    panel.wait_status("^ready")
    assert panel.field("lr").input_value() != field
    assert panel.curves().keys() == before.keys()
    assert panel.curves() != before
    assert notebook.errors() == []
    assert notebook.page.problems == []
