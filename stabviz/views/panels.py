"""`panel(run, knobs)`: move a knob, and models train before your eyes.

Why a worker thread. In JupyterLab a slider's callback may come on the main thread or on a subshell's
thread, in the middle of a running cell. So no callback computes: it notes what is wanted and returns. ONE
worker per panel computes, and a generation number tells it whether what it computes is still wanted; if
not, the generator is closed and the newest wanted values run. Hand-over to the page is by assigning widget
traits, which any thread may do.

Several panels on one page take turns (`_Turns`) between two yields, the one moved last first: on two cores,
two panels computing at once would each be less than half as fast.

Why showing a panel waits for its first run. Then the cell below does not compete with it for the cores, an
executed notebook is the same each time, and a broken run fails the cell, whether a person, nbconvert or
nbval executes it. The curves grow on the page meanwhile. This needs no guess about who is watching.
"""

import contextvars
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager

import ipywidgets
import torch

from stabviz.trace import Trace
from stabviz.views.idle_threads import release_after_each_cell, release_idle_threads
from stabviz.views.knobs import Choice, Control, Knob
from stabviz.views.panel_figure import Picture, draw_training, picture
from stabviz.views.panel_html import outcome_of, status_html, table_html, title_html
from stabviz.views.text import table_of, unseen

REDRAW_S = 0.3
"""Least time between two drawings of a growing run."""
DRAW_SHARE = 0.1
"""Largest share of a run's time that is spent on drawing it."""


def panel(
    run: Callable[..., Iterable[Trace]],
    knobs: Sequence[Knob | Choice],
    *,
    draw=None,
    title: str = "",
    height_px: int = 420,
    remember: int = 32,
) -> "Panel":
    """Make a panel: knobs on top, curves of `run(**knobs)` below; show it as the last line of a cell.

    `run` yields growing Traces (or returns one). If it has a parameter named `cancelled`, it is given a
    function that says whether to stop; without one it is stopped at its next yield. It must not print, and
    must seed what it draws. `draw(figure, trace, values)` puts axes into an empty matplotlib Figure and may
    return a sentence that states the finding; every curve that a test or a screen reader shall find has a
    gid. None draws loss and gradient norm on one step axis, with the clip threshold where a knob or the
    Trace's config is called "clip_norm".

    Units:  height_px in CSS pixels at 720 wide; remember in complete Traces kept, the oldest go first
    Raises: ValueError if two knobs share a name, or remember < 1
    Lesson: 00-start-here
    """
    return Panel(run, knobs, draw=draw, title=title, height_px=height_px, remember=remember)


class Panel:
    """Knobs, a worker and a picture.

    For tests: `set`, `wait`, `stop`, `reset`, `values`, `status`, `trace`, `curves()`, `error`.
    """

    def __init__(self, run, knobs, *, draw, title, height_px, remember):
        names = [knob.name for knob in knobs]
        if len(set(names)) != len(names):
            raise ValueError(f"panel: knobs must have different names; got {names!r}")
        if remember < 1:
            raise ValueError(f"panel: remember must be 1 or more; got {remember!r}")
        self._run, self._draw = run, draw or draw_training
        self._remember, self._height_px = remember, height_px
        self._takes_cancelled = "cancelled" in inspect.signature(run).parameters
        self.knobs = {knob.name: knob for knob in knobs}
        self.title = title
        self.trace: Trace | None = None
        self.error: BaseException | None = None
        self.status = "ready"
        self._curves, self._axes_positions = {}, None
        self._finished: OrderedDict[tuple, Picture] = OrderedDict()
        # Reentrant: `set` holds it, and calls what takes it again.
        self._changed = threading.Condition(threading.RLock())
        # The generation says which move is the newest; what belongs to an older one is not drawn.
        self._wanted, self._worker, self._generation, self._moved_at = None, None, 0, 0
        self._controls = {knob.name: Control(knob, self._moved) for knob in knobs}
        self._lay_out(title)

    # What a learner's click or a test may do

    @property
    def values(self) -> dict:
        """What `run` is given: every knob's name and value."""
        return {name: control.value for name, control in self._controls.items()}

    def set(self, **values) -> None:
        """Set knobs by name, as a learner would, and start one run with the result."""
        with self._changed:
            # all of them are looked at before one is set: a wrong value changes nothing
            for name, value in values.items():
                if name not in self.knobs:
                    raise ValueError(f"Panel.set: knob must be one of {sorted(self.knobs)}; got {name!r}")
                self.knobs[name].accept(value)
            for name, value in values.items():
                self._controls[name].assign(self.knobs[name].accept(value))
            self._moved()

    def reset(self) -> None:
        """Set every knob to its default, and run."""
        self.set(**{name: knob.default for name, knob in self.knobs.items()})

    def stop(self) -> None:
        """Cancel the run under way; what has been drawn stays."""
        with self._changed:
            if self._worker is not None:
                self._generation += 1  # the run under way sees that it is no longer wanted
                self._wanted = None
                self._set_status("cancelled")

    def wait(self, timeout_s: float = 60.0) -> None:
        """Wait until nothing runs; raise the exception of the last run, if it had one.

        Raises: TimeoutError, or whatever `run` or `draw` raised
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._worker is None, timeout_s):
                limit = f"within {timeout_s:g} s"
                raise TimeoutError(f"Panel.wait: the run must end {limit}; got status {self.status!r}")
            if self.error is not None:
                raise self.error

    def curves(self) -> dict:
        """Return what is drawn: {gid: (x, y)}, two arrays a curve."""
        with self._changed:
            return dict(self._curves)

    def _ipython_display_(self):
        from IPython.display import display

        # "text/plain" stands in a stored notebook and on a page without widgets; it is the same each time
        bundle = self.widget._repr_mimebundle_()
        bundle["text/plain"] = f"Panel: {self.title or ', '.join(self.knobs)}. Run this cell to use it."
        display(bundle, raw=True)
        release_after_each_cell()
        release_idle_threads()
        if self.trace is None:
            self._moved()
        try:
            self.wait(timeout_s=600.0)  # see the module: the cell below would compete for the cores
        except KeyboardInterrupt:
            self.stop()
            raise

    # The worker

    def _moved(self) -> None:
        with self._changed:
            self._generation += 1
            self._moved_at = time.monotonic()
            # ipykernel finds the cell that output belongs to in the context: the worker has none of its own
            self._wanted = (self._generation, self.values, contextvars.copy_context())
            self._set_status("running")
            if self._worker is None:  # a daemon: a kernel that stops does not wait for models to train
                self._worker = threading.Thread(target=self._work, name="stabviz-panel", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._wanted is None:  # under the lock: a move that comes now starts a new worker
                    self._worker = None
                    self._changed.notify_all()
                    return
                (generation, values, context), self._wanted = self._wanted, None
                self.error = None
            try:
                context.run(self._compute, generation, values)  # the cell that asked owns what is sent
            except BaseException as error:  # nothing may end the worker: it is shown, kept, raised by wait
                with self._changed:
                    if self._generation == generation:
                        self.error = error
                        self._picture.add_class("stabviz-old")  # what is drawn belongs to other values
                        self._set_status(f"error: {type(error).__name__}: {error}")

    def _compute(self, generation: int, values: dict) -> None:
        key = tuple(sorted(values.items(), key=lambda item: item[0]))
        with _TURNS.wanted_by(self):
            if key in self._finished:
                self._finished.move_to_end(key)
                self._show(generation, self._finished[key])
                self._set_status(outcome_of(self._finished[key].trace, "from memory"), generation)
                return
            started_s = time.monotonic()
            complete = self._run_and_draw(generation, values)
            if complete is not None:
                self._finished[key] = complete
                while len(self._finished) > self._remember:
                    self._finished.popitem(last=False)
                took = f"{time.monotonic() - started_s:.1f} s"
                self._set_status(outcome_of(complete.trace, took), generation)

    def _run_and_draw(self, generation: int, values: dict) -> Picture | None:
        """Run to the end and draw on the way; return the last picture, or None if it is no longer wanted."""

        def cancelled():
            return self._generation != generation

        stream = self._run(**values, **({"cancelled": cancelled} if self._takes_cancelled else {}))
        stream = iter([stream] if isinstance(stream, Trace) else stream)
        trace, next_drawing_s = None, 0.0
        try:
            while not cancelled():
                with _TURNS.turn_of(self):
                    torch.set_grad_enabled(True)  # local to the thread; an earlier run may have left it off
                    newer = next(stream, None)
                    if cancelled():
                        return None
                    if newer is None:
                        break
                    if not isinstance(newer, Trace):
                        raise ValueError(f"panel: run must yield Traces; got {type(newer).__name__}")
                    trace = newer
                    if time.monotonic() >= next_drawing_s:
                        before_s = time.monotonic()
                        self._show(generation, self._picture_of(trace, values, self._axes_positions))
                        cost_s = time.monotonic() - before_s
                        # a picture may cost more than a step: drawing is held to DRAW_SHARE of the time
                        next_drawing_s = before_s + max(REDRAW_S, cost_s / DRAW_SHARE)
                        self._set_status(_progress(trace, values), generation)
            if cancelled():
                return None
            if trace is None:
                raise ValueError("panel: run must yield at least one Trace; got none")
            with _TURNS.turn_of(self):
                last = self._picture_of(trace, values, None)  # at leisure: axes stand where labels ask
            self._show(generation, last)
            return last
        finally:  # a generator that is left open would hold its models until the garbage collector comes
            if hasattr(stream, "close"):
                stream.close()

    def _picture_of(self, trace: Trace, values: dict, positions: tuple | None) -> Picture:
        return picture(self._draw, trace, values, self._height_px, positions)

    def _show(self, generation: int, shown: Picture) -> None:
        # Asked and shown under one lock: a move in between would leave the older run's picture on the page.
        with self._changed:
            if self._generation == generation:
                self.trace, self._curves = shown.trace, shown.curves
                self._axes_positions = shown.axes_positions
                self._picture.value = shown.svg
                self._picture.remove_class("stabviz-old")
                self._update_table()

    def _set_status(self, status: str, generation: int | None = None) -> None:
        with self._changed:
            if generation is None or generation == self._generation:
                self.status = status
                self._status.value = status_html(status)

    # What is on the page

    def _lay_out(self, title: str) -> None:
        self._picture = ipywidgets.HTML(layout={"height": f"{self._height_px}px"})
        self._picture.add_class("stabviz-picture")
        self._status = ipywidgets.HTML(status_html("ready"))
        self._table = ipywidgets.HTML(layout={"display": "none", "max_height": "240px", "overflow": "auto"})
        self._table.add_class("stabviz-table")
        reset = ipywidgets.Button(description="Reset", tooltip="Set every knob to its default")
        reset.on_click(lambda _: self.reset())
        stop = ipywidgets.Button(description="Stop", tooltip="Stop the run under way")
        stop.on_click(lambda _: self.stop())
        self._table_button = ipywidgets.ToggleButton(description="Table", tooltip="Show a text table")
        self._table_button.observe(lambda _: self._update_table(), names="value")
        buttons = ipywidgets.HBox([reset, stop, self._table_button, self._status])
        buttons.add_class("stabviz-buttons")
        controls = [control.box for control in self._controls.values()]
        self.widget = ipywidgets.VBox(
            [ipywidgets.HTML(title_html(title)), *controls, buttons, self._picture, self._table]
        )
        self.widget.add_class("stabviz-panel")

    def _update_table(self) -> None:
        with self._changed:
            if self._table_button.value and self.trace is not None:
                self._table.value = table_html(table_of(self.trace), self.trace.table(), unseen(self.trace))
            self._table.layout.display = None if self._table_button.value else "none"


class _Turns:
    """One panel computes at a time; between two yields the one that was moved last goes first."""

    def __init__(self):
        self._changed = threading.Condition()
        self._wanting: list[Panel] = []
        self._holder: Panel | None = None

    @contextmanager
    def wanted_by(self, who: "Panel"):
        with self._changed:
            self._wanting.append(who)
        try:
            yield
        finally:
            with self._changed:
                self._wanting.remove(who)
                self._changed.notify_all()

    @contextmanager
    def turn_of(self, who: "Panel"):
        with self._changed:
            # asked again at each hand-back, so that a panel moved meanwhile goes first
            self._changed.wait_for(
                lambda: self._holder is None and who is max(self._wanting, key=lambda each: each._moved_at)
            )
            self._holder = who
        try:
            yield
        finally:
            with self._changed:
                self._holder = None
                self._changed.notify_all()  # all: only one of them is the newest, and it is not known which


_TURNS = _Turns()


def _progress(trace: Trace, values: dict) -> str:
    done = int(trace.steps[-1]) if trace.n_steps else 0
    total = values.get("steps", trace.config.get("steps"))
    return f"running {done} of {total} steps" if total else f"running, step {done}"
