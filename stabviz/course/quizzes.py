"""`quiz`: a few questions at the end of a lesson; every answer is explained as soon as it is chosen."""

from dataclasses import dataclass

import ipywidgets

from stabviz.course.progress import try_to_record
from stabviz.course.widgets import STYLE, Page, rich


@dataclass(frozen=True, slots=True)
class Question:
    """Ask one thing with one right answer.

    Raises: ValueError unless the options differ, the answer is one of them, and every answer is explained
    Lesson: 00-start-here
    """

    text: str
    """The question; `code` in backticks and $math$ are set as such."""
    options: tuple | list
    """Two or more different answers, as plain text."""
    answer: str
    """The right one, word for word."""
    why: str | tuple | list
    """The explanation: one for all, or one for each option."""

    def __post_init__(self):
        if len(self.options) < 2 or len(set(self.options)) != len(self.options):
            raise ValueError(f"Question: options must be two or more different texts; got {self.options!r}")
        if self.answer not in self.options:
            raise ValueError(f"Question: answer must be one of {tuple(self.options)!r}; got {self.answer!r}")
        if not self.why or not isinstance(self.why, str) and len(self.why) != len(self.options):
            raise ValueError(f"Question: why must be a text, or one text for each option; got {self.why!r}")

    def explain(self, chosen: str) -> str:
        """Return what to say to the one who chose this option."""
        why = self.why if isinstance(self.why, str) else self.why[list(self.options).index(chosen)]
        return ("Yes. " if chosen == self.answer else "Not this one. ") + why


class Quiz(Page):
    """Questions on the page. For a test: `choose(number, option)`, `explanations`, `right`."""

    def __init__(self, lesson: str, questions):
        self.lesson, self.questions = lesson, list(questions)
        self.explanations = [""] * len(self.questions)
        self._fields = [ipywidgets.RadioButtons(options=list(q.options), value=None) for q in self.questions]
        self._notes = [ipywidgets.HTMLMath() for _ in self.questions]
        shown = [ipywidgets.HTML(STYLE)]
        rows = zip(self.questions, self._fields, self._notes, strict=True)
        for number, (question, field, note) in enumerate(rows):
            # number as a default: a name in the body would be the last number for every question
            field.observe(lambda change, number=number: self._chosen(number, change["new"]), names="value")
            shown += [ipywidgets.HTMLMath(f"<b>{number + 1}.</b> {rich(question.text)}"), field, note]
        words = "\n".join(f"{n + 1}. {q.text}" for n, q in enumerate(self.questions))
        super().__init__(ipywidgets.VBox(shown), f"Quiz of lesson {lesson}\n{words}")

    @property
    def right(self) -> int:
        """How many questions are answered rightly now."""
        return sum(f.value == q.answer for f, q in zip(self._fields, self.questions, strict=True))

    def choose(self, number: int, option: str) -> None:
        """Choose an option, as a click does."""
        self._fields[number].value = option

    def _chosen(self, number: int, option: str | None) -> None:
        if option is None:
            return
        question = self.questions[number]
        kind = "right" if option == question.answer else "wrong"
        self.explanations[number] = question.explain(option)
        answers = [field.value for field in self._fields]
        counts = {"right": self.right, "asked": len(self.questions)}
        failed = try_to_record("quizzes", self.lesson, **counts, answers=answers)
        words = f"{rich(self.explanations[number])} {rich(failed)}"
        self._notes[number].value = f'<div role="status" class="stabviz-{kind}">{words}</div>'


def quiz(lesson: str, questions) -> Quiz:
    """Make a quiz; last line of a cell that nbval ignores. Nothing is told before the learner chooses.

    Raises: ValueError if there is no question
    Lesson: 00-start-here
    """
    if not questions or not all(isinstance(question, Question) for question in questions):
        raise ValueError(f"quiz: questions must be one or more Question; got {questions!r}")
    return Quiz(lesson, questions)
