"""Every panel of every lesson, in-process: each knob, at both ends and the middle, draws and moves curves."""

import contextlib
import io

import numpy as np
import pytest
from nbformat import v4

from lessons.build import NOTEBOOKS, read_lesson, sources
from stabviz.views.panels import Panel

PATIENCE_S = 120.0


def panels_of(notebook, monkeypatch):
    """Run the code cells up to the last that makes a panel, and return the panels, not shown yet."""
    made = []
    set_up = Panel.__init__

    def note(self, *arguments, **options):
        set_up(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(Panel, "__init__", note)
    monkeypatch.chdir(NOTEBOOKS)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = max((n for n, cell in enumerate(cells) if "panel(" in cell.source), default=-1)
    space = {"__name__": "__main__"}
    for number, cell in enumerate(cells[: last + 1], 1):
        expected = Exception if "raises-exception" in cell.metadata.get("tags", []) else ()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(expected):
            exec(compile(cell.source, f"<code cell {number}>", "exec"), space)
    return made


def snapshot(panel):
    """Return what is drawn as plain data, so that two snapshots can be compared."""
    return {gid: (x.tobytes(), y.tobytes()) for gid, (x, y) in panel.curves().items()}


def drawn_problems(panel):
    """Return what is wrong with the curves on the page."""
    curves = panel.curves()
    if not curves:
        return ["draws no curve with a gid"]
    problems = [f"{gid} is empty" for gid, (x, y) in curves.items() if not 0 < len(x) == len(y)]
    values = np.concatenate([np.asarray(y, dtype=float) for _, y in curves.values()])
    if not np.isfinite(values).any():
        problems.append("draws nothing finite")
    if not np.isfinite(values).all() and not any(gid.startswith("nonfinite-") for gid in curves):
        problems.append("leaves a gap where a run is not finite, and marks it with nothing")
    return problems


def knob_problems(panel):
    """Try every knob at both ends and the middle, the others at their defaults; return what is wrong."""
    problems = []
    for name, knob in panel.knobs.items():
        panel.reset()
        panel.wait(PATIENCE_S)
        seen = [snapshot(panel)]
        for value in knob.ends_and_middle():
            panel.set(**{name: value})
            panel.wait(PATIENCE_S)
            problems += [f"{name} = {value!r}: {problem}" for problem in drawn_problems(panel)]
            seen.append(snapshot(panel))
        if all(each == seen[0] for each in seen):
            problems.append(f"{name}: moving it changes no curve")
    return problems


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sources()])
def test_each_knob_of_each_panel_draws_and_changes_a_curve(path, monkeypatch):
    panels = panels_of(read_lesson(path), monkeypatch)
    assert panels
    assert [f"{panel.title}: {problem}" for panel in panels for problem in knob_problems(panel)] == []


# The checks themselves, on panels that are broken in one way each. ------------------------------------------

PANEL = """
import numpy as np
from stabviz.trace import Trace
from stabviz.views import Knob, panel

def run(lr, **others):
    loss_RS = np.full((2, 3), lr)
    yield Trace(config={}, steps=np.arange(3), signals={"loss_nats": loss_RS}, runs=[{}, {}])

def draw(figure, trace, values):
    axes = figure.subplots()
    axes.plot(trace.steps, trace["loss_nats"][0], gid="loss")
    return "Loss stays where it is."

shown = panel(run, [Knob("lr", 0.5, low=0.1, high=1.0)], draw=draw, title="planted")
"""


def planted(monkeypatch, old="", new=""):
    assert old in PANEL
    cell = v4.new_code_cell(PANEL.replace(old, new))
    (panel,) = panels_of(v4.new_notebook(cells=[cell]), monkeypatch)
    return panel


def test_a_sound_panel_has_no_problems(monkeypatch):
    assert knob_problems(planted(monkeypatch)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("high=1.0)]", "high=1.0), Knob('dead', 1, low=0, high=2)]", "dead: moving it changes no curve"),
        (', gid="loss"', "", "draws no curve with a gid"),
        ('trace.steps, trace["loss_nats"][0]', "[], []", "is empty"),
        ("(2, 3), lr", "(2, 3), np.nan * lr", "draws nothing finite"),
        ("lr)\n    yield", "[lr, np.nan, np.nan])\n    yield", "leaves a gap"),
    ],
)
def test_a_broken_panel_is_caught(monkeypatch, old, new, problem):
    problems = knob_problems(planted(monkeypatch, old, new))
    assert any(problem in each for each in problems), problems


def test_a_panel_that_raises_fails_the_test(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        knob_problems(planted(monkeypatch, "(2, 3), lr", "(2, 3), 1 / 0"))
