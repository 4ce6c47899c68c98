"""`predict` before a run and `reveal` after it: one learns from an answer one has committed to."""

import html
import math

import ipywidgets

from stabviz.course import progress
from stabviz.course.widgets import STYLE, Page, rich


class Prediction(Page):
    """A question whose answer is kept. For a test: `commit(answer)`, `answer`, `note`."""

    def __init__(self, name: str, question: str, field):
        self.name, self._field, self.note = name, field, ""
        self._line = ipywidgets.HTML()
        keep = ipywidgets.Button(description="Keep my answer")
        keep.on_click(lambda _: self.commit(self._field.value))
        earlier = self.answer
        if earlier is not None:
            self._say(f"You said {_shown(earlier)}. You may change your mind before the run.")
        asking = ipywidgets.HTMLMath(STYLE + f"<b>Predict.</b> {rich(question)}")
        shown = ipywidgets.VBox([asking, field, ipywidgets.HBox([keep, self._line])])
        super().__init__(shown, f"Predict. {question}")

    @property
    def answer(self):
        """What was kept, or None."""
        return progress.load()["predictions"].get(self.name, {}).get("answer")

    def commit(self, answer) -> None:
        """Keep an answer, as the button does."""
        if answer is None:
            self._say("Choose one first.")
            return
        failed = progress.try_to_record("predictions", self.name, answer=answer)
        self._say(failed or f"Kept: {_shown(answer)}. Read on and run the lab.")

    def _say(self, note: str) -> None:
        self.note = note
        self._line.value = html.escape(note)


def predict(name: str, question: str, options=None, *, low=None, high=None, unit: str = "") -> Prediction:
    """Ask for one of `options` or a number from low to high; last line of a cell that nbval ignores.

    Raises: ValueError unless there are two or more options of text, or two finite numbers low < high
    Lesson: 00-start-here
    """
    if (options is None) == (low is None):
        raise ValueError("predict: either options or low and high must be given; got both or neither")
    if options is not None:
        options = [str(option) for option in options]
        if len(set(options)) < 2:
            raise ValueError(f"predict: options must be two or more different texts; got {options!r}")
        return Prediction(name, question, ipywidgets.RadioButtons(options=options, value=None))
    if high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"predict: low and high must be finite with low < high; got {low!r}, {high!r}")
    label = f"{low:g} to {high:g} {unit}".strip()
    style = {"description_width": "initial"}
    field = ipywidgets.BoundedFloatText(
        min=low, max=high, value=low, step=None, description=label, style=style
    )
    return Prediction(name, question, field)


def reveal(name: str, measured, *, answer: str | None = None, unit: str = "", why: str = "") -> Page:
    """Show the prediction beside the measurement; last line of a cell that nbval ignores.

    `answer` is the option that the measurement picked, where the question had options. Without a prediction
    the measurement is shown alone, and kindly.

    Lesson: 00-start-here
    """
    shown = _shown(measured, unit)
    entry = progress.load()["predictions"].get(name)
    if entry is None:
        first, kind = "No prediction was kept for this one. It is worth making one before you read on.", ""
    else:
        predicted = entry["answer"]
        first = f"You predicted: {_shown(predicted, unit if answer is None else '')}."
        # a number that was guessed is near or far, and the learner sees which
        kind = "" if answer is None else f"stabviz-{'right' if predicted == answer else 'wrong'}"
        progress.try_to_record("predictions", name, answer=predicted, measured=shown)
    lines = [rich(first), f"Measured: <b>{rich(shown)}</b>."]
    if answer is not None:
        lines.append(f"So the answer was: <b>{rich(answer)}</b>.")
    if why:
        lines.append(rich(why))
    page = ipywidgets.HTMLMath(STYLE + f'<div class="{kind}">' + "<br>".join(lines) + "</div>")
    return Page(ipywidgets.VBox([page]), f"Measured: {shown}.")


def _shown(value, unit: str = "") -> str:
    is_real = hasattr(value, "__float__") and not isinstance(value, bool | int)
    text = f"{float(value):.4g}" if is_real else str(value)
    return f"{text} {unit}".strip()
