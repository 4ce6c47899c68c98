"""Predictions and quizzes in real JupyterLab: answered by keyboard, explained, kept, readable in both
themes."""

import pytest

CELLS = [
    "from stabviz.course import Question, predict, quiz, reveal",
    "predict('00-lr', 'Which `lr` ends lowest after $10^2$ steps?', ['0.0001', '0.003', '1.0'])",
    """quiz("00", [Question("What does `clip` bound?", ["the step", "the loss"], "the step",
                why=("The norm of the gradient, and so the step.", "The loss is not touched.")),
       Question("Is NaN < 1?", ["yes", "no"], "no", why="Every comparison with NaN is false.")])""",
]


@pytest.fixture(scope="module")
def opened(opener):
    notebook = opener(CELLS)
    notebook.run_all()
    yield notebook
    notebook.close()


def test_prediction_and_quiz_are_answered_by_keyboard_and_kept(opened):
    page = opened.page
    page.get_by_label("0.003").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Keep my answer").press("Enter")
    page.get_by_text("Kept: 0.003.").wait_for()
    page.get_by_label("the loss").focus()
    page.keyboard.press("Space")
    page.get_by_text("Not this one. The loss is not touched.").wait_for()
    page.get_by_label(
        "the step"
    ).focus()  # each option is a stop of the tab key: ipywidgets gives them no group
    page.keyboard.press("Space")
    page.get_by_text("Yes. The norm of the gradient").wait_for()
    kept = opened.ask("__import__('stabviz.course.progress').course.progress.load()")
    assert kept["predictions"]["00-lr"]["answer"] == "0.003"
    assert (kept["quizzes"]["00"]["right"], kept["quizzes"]["00"]["asked"]) == (1, 2)
    assert opened.errors() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read(opened, screenshot, theme):
    opened.set_theme(dark=theme == "dark")
    opened.page.locator(".stabviz-course").last.scroll_into_view_if_needed()
    screenshot(opened.page, f"course-{theme}.png")
    assert opened.panel().contrast_of(opened.page.locator(".stabviz-course code").first) >= 4.5
    assert (
        opened.panel().contrast_of(opened.page.locator(".stabviz-course .widget-radio-box label").first)
        >= 4.5
    )
