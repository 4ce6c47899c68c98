"""Lesson 00 in real JupyterLab: it opens, runs, and its first slider trains models that end on the last
move."""

import io
import json
import re
from pathlib import Path

import matplotlib.image
import pytest

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "00-start-here.ipynb"
MOVE_S = 90
"""A move takes about two seconds on a quiet machine; others may be at work on this one."""
PANEL = (
    "next(p for p in __import__('gc').get_objects() "
    "if type(p).__name__ == 'Panel' and set(p.knobs) == {'lr', 'clip_norm', 'warmup_steps'})"
)


CELLS = json.loads(LESSON.read_text())["cells"]
PANEL_CELL = next(
    n for n, cell in enumerate(CELLS) if re.search(r"^panel\(", "".join(cell["source"]), re.MULTILINE)
)


@pytest.fixture(scope="module")
def opened(opener):
    notebook = opener(LESSON)
    notebook.start_all()
    notebook.page.wait_for_timeout(1000)
    # The stored notebook has its execution counts already, so they say nothing: wait for the kernel's queue
    assert notebook.ask("1 + 1") == 2
    yield notebook
    notebook.close()


def show_first_panel(notebook):
    """Scroll there: JupyterLab hides the cells that are far from the window."""
    notebook.page.evaluate(
        """async number => {
        const cells = window.jupyterapp.shell.currentWidget.content;
        cells.activeCellIndex = number;
        await cells.scrollToItem(number, 'end'); }""",
        PANEL_CELL,
    )
    panel = notebook.panel()
    panel.root.wait_for(state="visible")
    panel.root.evaluate("root => root.scrollIntoView({block: 'center'})")
    notebook.page.wait_for_timeout(300)
    return panel


@pytest.fixture
def first_panel(opened):
    """The first panel at its defaults, with nothing running."""
    opened.page.bring_to_front()
    panel = show_first_panel(opened)
    panel.button("Reset").press("Enter")
    panel.wait_status("^ready.*memory", MOVE_S)
    return panel


def press(panel, knob, key, times=1):
    panel.slider(knob).focus()
    for _ in range(times):
        panel.page.keyboard.press(key)


def settle(notebook, panel):
    """Wait until the run of the values on the page is over."""
    notebook.page.wait_for_timeout(500)
    return panel.wait_status("^(ready|diverged)", MOVE_S)


def trained_lr(notebook):
    """What the kernel's panel trained last."""
    return notebook.ask(f"{PANEL}.trace.config['lr']")


def test_lesson_runs_from_top_to_bottom_and_all_claims_hold(opened):
    assert opened.errors() == []
    assert opened.page.problems == []
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    asked = sum(len(re.findall(r"^claim\(", source, re.MULTILINE)) for source in code)
    # JupyterLab takes cells that are far away out of the page, so the kernel is asked and not the page
    held = opened.ask("len(__import__('stabviz.course.progress', fromlist=['load']).load()['claims'])")
    assert held == asked > 10


def test_first_panel_shows_eight_healthy_runs_before_anything_is_touched(first_panel):
    assert first_panel.root.locator(".stabviz-title").inner_text() == "Eight real models for every move"
    assert {
        "curve-loss_nats-all",
        "curve-grad_norm_preclip-all",
        "level-chance",
    } <= first_panel.curves().keys()
    assert "8 of 8 healthy" in first_panel.label()
    assert first_panel.status().startswith("ready · 8 runs")


def test_slider_of_the_learning_rate_changes_the_drawn_curve(opened, first_panel):
    before = first_panel.curves()
    press(first_panel, "lr", "ArrowRight")
    settle(opened, first_panel)
    assert float(first_panel.field("lr").input_value()) > 0.003
    assert first_panel.curves()["curve-loss_nats-all"] != before["curve-loss_nats-all"]
    assert first_panel.curves()["curve-grad_norm_preclip-all"] != before["curve-grad_norm_preclip-all"]


def test_ten_fast_moves_end_on_the_last_value(opened, first_panel):
    before = first_panel.curves()
    press(first_panel, "lr", "ArrowRight", times=10)
    settle(opened, first_panel)
    value = float(first_panel.field("lr").input_value())
    # 3e-3 stands nearest to -2.5 among positions a tenth of a decade apart; three digits are kept
    assert value == pytest.approx(10 ** (-2.5 + 10 * 0.1), rel=0.005)
    assert trained_lr(opened) == value
    assert opened.ask(f"{PANEL}.trace.n_steps") == 80
    assert first_panel.curves() != before


def test_clipping_and_warm_up_reach_the_run(opened, first_panel):
    before = first_panel.curves()
    first_panel.field("clip_norm").select_option("0.1")
    press(first_panel, "warmup_steps", "Home")
    settle(opened, first_panel)
    config = opened.ask(f"{{k: {PANEL}.trace.config[k] for k in ('clip_norm', 'warmup_steps')}}")
    assert config == {"clip_norm": 0.1, "warmup_steps": 0}
    assert "level-clip" in first_panel.curves().keys() - before.keys()


def test_right_end_of_the_slider_is_no_longer_healthy(opened, first_panel, screenshot):
    press(first_panel, "lr", "End")
    settle(opened, first_panel)
    assert trained_lr(opened) == 1.0
    assert "8 of 8 healthy" not in first_panel.label()
    screenshot(opened.page, "lesson-00-right-end.png")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshot_is_not_blank_and_words_can_be_read(opened, first_panel, screenshot, theme):
    opened.set_theme(dark=theme == "dark")
    show_first_panel(opened)
    screenshot(opened.page, f"lesson-00-{theme}.png")
    for part in (".stabviz-title", ".stabviz-note", ".stabviz-status", ".stabviz-field .widget-label"):
        assert first_panel.contrast(part) >= 4.5, f"{part} in the {theme} theme"
    pixels = matplotlib.image.imread(io.BytesIO(first_panel.root.screenshot()))[::2, ::2, :3]
    assert len({tuple(pixel) for pixel in (pixels * 255).astype(int).reshape(-1, 3)}) > 200
