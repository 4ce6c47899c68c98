"""Panels in-process, with runs that are made up: the newest move wins, whatever comes between."""

import threading
import time

import numpy as np
import pytest
import torch

from stabviz.trace import Trace
from stabviz.views import Choice, Knob, panel
from stabviz.views import panels as panels_module
from stabviz.views.panel_figure import draw_training

LOSS, NORM = "curve-loss_nats-all", "curve-grad_norm_preclip-all"
N_RUNS, N_STEPS = 3, 11
LR = Knob("lr", 0.25, low=0.001, high=1.0, log=True)


def trace_of(level, done=N_STEPS, **config):
    loss_RS = np.full((N_RUNS, done), level) + np.arange(done) / 100
    return Trace(
        steps=range(done),
        signals={"loss_nats": loss_RS, "grad_norm_preclip": loss_RS},
        runs=[{"seed": seed} for seed in range(N_RUNS)],
        config={"steps": N_STEPS, **config},
    )


def slow(pause_s=0.01, started=None, closed=None):
    """Return a run whose loss is its lr, and that says when it starts and is closed."""

    def run(lr):
        if started is not None:
            started.append(lr)
        try:
            for done in range(1, N_STEPS + 1):
                time.sleep(pause_s)
                yield trace_of(lr, done)
        finally:
            if closed is not None:
                closed.append(lr)

    return run


def level(shown):
    return shown.curves()[LOSS][1][0]


def wait_until(condition, patience_s=10):
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, "never came true"
        time.sleep(0.002)


def test_panel_draws_loss_and_gradient_norm_on_one_step_axis():
    shown = panel(slow(), [LR])
    shown.set(lr=0.5)
    shown.wait()
    curves = shown.curves()
    assert curves[LOSS][0].tolist() == curves[NORM][0].tolist() == list(range(N_STEPS))
    assert level(shown) == 0.5
    assert shown.status.startswith("ready · 3 runs")
    svg = shown._picture.value
    assert 'role="img"' in svg
    assert 'aria-label="Loss of 3 runs' in svg
    assert f'data-gid="{LOSS}"' in svg


def test_ten_fast_moves_end_on_the_last_value_and_close_the_runs_between():
    started, closed = [], []
    shown = panel(slow(0.02, started, closed), [LR])
    for tenth in range(1, 11):
        shown.set(lr=tenth / 10)
        time.sleep(0.03)
    shown.wait()
    assert level(shown) == 1.0
    assert shown.trace["loss_nats"][0, 0] == 1.0
    assert started == closed
    assert started[-1] == 1.0


def test_moves_from_many_threads_end_on_what_the_knob_says():
    shown = panel(slow(0.001), [LR])
    movers = [threading.Thread(target=shown.set, kwargs={"lr": k / 10}) for k in range(1, 11)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    shown.wait()
    assert level(shown) == shown.values["lr"]


def test_one_worker_thread_which_ends_when_there_is_nothing_to_do():
    shown = panel(slow(), [LR])
    for tenth in range(1, 6):
        shown.set(lr=tenth / 10)
        assert sum(thread.name == "stabviz-panel" for thread in threading.enumerate()) == 1
    shown.wait()
    wait_until(lambda: all(thread.name != "stabviz-panel" for thread in threading.enumerate()))


def test_equal_knobs_come_from_memory_and_draw_the_same():
    started = []
    shown = panel(slow(0.001, started), [LR])
    for lr in (0.5, 0.7, 0.5):
        shown.set(lr=lr)
        shown.wait()
        if lr == 0.5:
            picture = shown._picture.value
    assert started == [0.5, 0.7]
    assert shown.status == "ready · 3 runs · from memory"
    assert shown._picture.value == picture
    assert level(shown) == 0.5


def test_memory_is_bounded_and_forgets_the_oldest():
    started = []
    shown = panel(slow(0.0, started), [LR], remember=2)
    for lr in (0.1, 0.2, 0.3, 0.2, 0.1):
        shown.set(lr=lr)
        shown.wait()
    assert started == [0.1, 0.2, 0.3, 0.1]


def test_stop_keeps_what_was_drawn_and_says_cancelled():
    closed = []
    shown = panel(slow(0.05, closed=closed), [LR])
    shown.set(lr=0.5)
    wait_until(lambda: shown.curves())
    shown.stop()
    shown.wait()
    assert shown.status == "cancelled"
    assert closed == [0.5]
    assert level(shown) == 0.5
    assert shown.trace.n_steps < N_STEPS
    shown.set(lr=0.5)
    shown.wait()
    assert shown.trace.n_steps == N_STEPS, "a cancelled run must not be taken for a complete one"


def test_stop_without_a_run_changes_nothing():
    shown = panel(slow(), [LR])
    shown.stop()
    assert shown.status == "ready"


def test_run_is_told_through_cancelled_between_yields():
    asked = threading.Event()

    def run(lr, cancelled):
        yield trace_of(lr, 1)
        if lr == 0.5:
            wait_until(lambda: cancelled())
            asked.set()
            return
        yield trace_of(lr)

    shown = panel(run, [LR])
    shown.set(lr=0.5)
    wait_until(lambda: shown.curves())
    shown.set(lr=0.7)
    shown.wait()
    assert asked.is_set()
    assert shown.trace.n_steps == N_STEPS
    assert level(shown) == 0.7


def test_status_tells_how_far_the_run_is():
    shown = panel(slow(0.03), [LR])
    seen = set()
    shown.set(lr=0.5)
    while shown.status.startswith("running"):
        seen.add(shown.status)
        time.sleep(0.002)
    assert any(status.startswith("running 0 of 11 steps") for status in seen), seen


@pytest.mark.parametrize("when", [0, 3])
def test_exception_is_shown_and_raised_by_wait_and_the_next_move_works(when):
    def run(lr):
        for done in range(1, N_STEPS + 1):
            if lr > 0.9 and done == when + 1:
                raise RuntimeError("too <large>")
            yield trace_of(lr, done)

    shown = panel(run, [LR])
    shown.set(lr=1.0)
    with pytest.raises(RuntimeError, match="too <large>"):
        shown.wait()
    assert shown.status == "error: RuntimeError: too <large>"
    assert "too &lt;large&gt;" in shown._status.value
    assert isinstance(shown.error, RuntimeError)
    assert "stabviz-old" in shown._picture._dom_classes
    shown.set(lr=0.5)
    shown.wait()
    assert shown.error is None
    assert "stabviz-old" not in shown._picture._dom_classes
    assert level(shown) == 0.5


@pytest.mark.parametrize(
    ("run", "words"), [(lambda lr: [], "at least one Trace"), (lambda lr: [3], "yield Traces; got int")]
)
def test_run_that_yields_no_trace_is_named(run, words):
    shown = panel(run, [LR])
    shown.reset()
    with pytest.raises(ValueError, match=words):
        shown.wait()


def test_exception_in_draw_is_shown():
    def draw(figure, trace, values):
        raise KeyError("no such signal")

    shown = panel(slow(0.0), [LR], draw=draw)
    shown.reset()
    with pytest.raises(KeyError, match="no such signal"):
        shown.wait()
    assert "KeyError" in shown.status


def test_error_of_a_run_that_is_no_longer_wanted_is_not_shown():
    may_fail = threading.Event()

    def run(lr):
        if lr == 0.5:
            may_fail.wait(5)
            raise RuntimeError("old")
        yield trace_of(lr)

    shown = panel(run, [LR])
    shown.set(lr=0.5)
    wait_until(lambda: shown._wanted is None)
    shown.set(lr=0.7)
    may_fail.set()
    shown.wait()
    assert level(shown) == 0.7


def test_error_after_stop_is_not_shown():
    may_fail = threading.Event()

    def run(lr):
        yield trace_of(lr, 1)
        may_fail.wait(5)
        raise RuntimeError("old")

    shown = panel(run, [LR])
    shown.set(lr=0.5)
    wait_until(lambda: shown.curves())
    shown.stop()
    may_fail.set()
    shown.wait()
    assert shown.status == "cancelled"
    assert shown.error is None


def test_stop_during_a_drawing_shows_nothing_more_and_keeps_nothing_in_memory():
    drawing, may_draw = threading.Event(), threading.Event()

    def draw(figure, trace, values):
        drawing.set()
        may_draw.wait(5)
        return draw_training(figure, trace, values)

    shown = panel(slow(0.0), [LR], draw=draw)
    shown.set(lr=0.5)
    drawing.wait(5)
    shown.stop()
    may_draw.set()
    shown.wait()
    assert shown.curves() == {}
    assert shown.status == "cancelled"
    shown.set(lr=0.5)
    shown.wait()
    assert shown.trace.n_steps == N_STEPS


def test_iterator_that_is_no_longer_wanted_is_closed():
    closed = []

    class Steps:
        """Not a generator: nothing closes it but the panel."""

        def __init__(self, lr):
            self.lr = lr

        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(0.01)
            return trace_of(self.lr, 1)

        def close(self):
            closed.append(self.lr)

    shown = panel(Steps, [LR])
    shown.set(lr=0.5)
    wait_until(lambda: shown.curves())
    shown.stop()
    shown.wait()
    assert closed == [0.5]


def test_divergence_is_told_with_step_and_number_of_runs_and_is_marked():
    loss_RS = np.ones((N_RUNS, N_STEPS))
    loss_RS[1, 7:] = np.nan
    loss_RS[2, 5:] = np.inf
    diverged = Trace(
        steps=range(N_STEPS),
        signals={"loss_nats": loss_RS, "grad_norm_preclip": loss_RS},
        runs=[{"seed": seed} for seed in range(N_RUNS)],
        events=[{"run": 2, "step": 5, "kind": "non_finite", "signal": "loss_nats"}],
    )
    shown = panel(lambda lr: diverged, [LR])
    shown.reset()
    shown.wait()
    assert shown.status.startswith("diverged at step 5 (2 of 3 runs)")
    assert {"nonfinite-loss_nats-1", "nonfinite-loss_nats-2"} <= shown.curves().keys()


def test_all_nan_is_drawn_without_an_error():
    nothing = np.full((N_RUNS, N_STEPS), np.nan)
    dead = Trace(
        steps=range(N_STEPS),
        signals={"loss_nats": nothing, "grad_norm_preclip": nothing},
        runs=[{"seed": seed} for seed in range(N_RUNS)],
    )
    shown = panel(lambda lr: [dead], [LR])
    shown.reset()
    shown.wait()
    assert shown.status.startswith("diverged at step 0 (3 of 3 runs)")


def test_run_and_its_grad_mode_stay_apart_from_the_caller_and_the_next_run():
    modes = []

    def run(lr):
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        yield trace_of(lr, 1)
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        yield trace_of(lr)

    shown = panel(run, [LR])
    with torch.no_grad():
        for lr in (0.5, 0.7):
            shown.set(lr=lr)
            shown.wait()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert modes == [True] * 4


def test_two_panels_take_turns_and_the_one_moved_last_goes_first():
    inside, most, order = [], [], []

    def run_named(name):
        def run(lr):
            for done in range(1, N_STEPS + 1):
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.02)
                inside.remove(name)
                order.append(name)
                yield trace_of(lr, done)

        return run

    first, second = panel(run_named("first"), [LR]), panel(run_named("second"), [LR])
    first.set(lr=0.5)
    wait_until(lambda: order)
    second.set(lr=0.7)
    first.wait()
    second.wait()
    assert max(most) == 1
    assert order.index("second") < N_STEPS - 1, (
        "the panel that was moved last had to wait for the other to end"
    )
    assert max(i for i, name in enumerate(order) if name == "second") < len(order) - 1
    assert (level(first), level(second)) == (0.5, 0.7)


def test_a_panel_that_fails_hands_on_its_turn():
    def fails(lr):
        yield trace_of(lr, 1)
        raise RuntimeError("first")

    first, second = panel(fails, [LR]), panel(slow(0.0), [LR])
    first.reset()
    with pytest.raises(RuntimeError, match="first"):
        first.wait()
    second.reset()
    second.wait(timeout_s=10)


def test_drawing_takes_a_small_share_of_a_long_run():
    spent = []

    def draw(figure, trace, values):
        spent.append(trace.n_steps)
        return draw_training(figure, trace, values)

    def run(lr):
        for done in range(1, 152):
            time.sleep(0.01)
            yield trace_of(lr, done)

    shown = panel(run, [LR], draw=draw)
    shown.reset()
    shown.wait()
    # 1.5 s of run: at most one drawing each 0.3 s, the first at once, and the last
    assert 2 <= len(spent) <= 8, spent
    assert spent[0] == 1
    assert spent[-1] == 151


def test_wait_names_the_status_when_time_is_up():
    shown = panel(slow(0.2), [LR])
    shown.reset()
    with pytest.raises(TimeoutError, match="Panel.wait: the run must end within 0.01 s"):
        shown.wait(timeout_s=0.01)
    shown.stop()
    shown.wait()


def test_reset_restores_every_default_in_one_run():
    started = []

    def run(lr, layers, clip, norm):
        started.append((lr, layers, clip, norm))
        yield trace_of(lr)

    shown = panel(
        run,
        [LR, Knob("layers", 2, low=1, high=7), Knob("clip", True), Choice("norm", "pre", ["pre", "post"])],
    )
    shown.set(lr=0.5, layers=5, clip=False, norm="post")
    shown.wait()
    shown.reset()
    shown.wait()
    assert started == [(0.5, 5, False, "post"), (0.25, 2, True, "pre")]
    assert type(shown.values["layers"]) is int


def test_table_shows_on_demand_and_follows_the_run():
    shown = panel(slow(0.0), [LR])
    shown.set(lr=0.5)
    shown.wait()
    assert shown._table.layout.display == "none"
    shown._table_button.value = True
    assert shown._table.layout.display is None
    assert shown._table.value.count("<tr>") == 1 + 1 + 1 + N_RUNS
    before = shown._table.value
    shown.set(lr=0.7)
    shown.wait()
    assert shown._table.value != before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 1.0}, "knob must be one of"),
        ({"lr": 2.0}, "lr must be in"),
        ({"lr": float("nan")}, "lr must be in"),
        ({"lr": True}, "lr must be in"),
    ],
)
def test_set_refuses_what_no_learner_could_set(values, words):
    shown = panel(slow(0.0), [LR])
    with pytest.raises(ValueError, match=words):
        shown.set(**values)
    assert shown.values == {"lr": 0.25}
    assert shown.trace is None


def test_panel_refuses_two_knobs_of_one_name_and_no_memory():
    with pytest.raises(ValueError, match="different names"):
        panel(slow(), [LR, LR])
    with pytest.raises(ValueError, match="remember must be 1 or more"):
        panel(slow(), [LR], remember=0)


def test_worker_hands_the_context_of_the_mover_to_the_run():
    # ipykernel keeps the cell that asked in a context variable; without it nbclient loses what a worker sends
    import contextvars

    cell = contextvars.ContextVar("cell", default="none")
    seen = []

    def run(lr):
        seen.append(cell.get())
        yield trace_of(lr)

    shown = panel(run, [LR])
    cell.set("first")
    shown.set(lr=0.5)
    shown.wait()
    cell.set("second")
    shown.set(lr=0.7)
    shown.wait()
    assert seen == ["first", "second"]


def test_showing_waits_for_the_first_run_and_raises_its_error(monkeypatch):
    shown_bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown_bundles.append(bundle))
    shown = panel(slow(0.01), [LR], title="Rates")
    shown._ipython_display_()
    assert shown.trace.n_steps == N_STEPS
    assert "application/vnd.jupyter.widget-view+json" in shown_bundles[0]
    assert shown_bundles[0]["text/plain"] == "Panel: Rates. Run this cell to use it."
    shown._ipython_display_()
    assert len(shown_bundles) == 2

    broken = panel(lambda lr: [], [LR])
    with pytest.raises(ValueError, match="at least one Trace"):
        broken._ipython_display_()


def test_redraw_constants_keep_the_promises_of_a_panel():
    assert panels_module.REDRAW_S >= 0.2
    assert panels_module.DRAW_SHARE <= 0.3
