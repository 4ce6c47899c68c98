"""What a notebook of the course calls. Imports `stabviz.trace` and `stabviz.views` only.

`claim` is a line of its own. `predict`, `reveal` and `quiz` stand as the last line of a cell tagged
`nbval-ignore-output`; `exercise` decorates the learner's function.
"""

from stabviz.course.claims import ClaimFailed, claim
from stabviz.course.exercises import ExerciseFailed, check, exercise, expect, judge, yours
from stabviz.course.margins import above, at_least, at_most, below
from stabviz.course.predictions import predict, reveal
from stabviz.course.progress import report
from stabviz.course.quizzes import Question, quiz

__all__ = [
    "ClaimFailed",
    "ExerciseFailed",
    "Question",
    "above",
    "at_least",
    "at_most",
    "below",
    "check",
    "claim",
    "exercise",
    "expect",
    "judge",
    "predict",
    "quiz",
    "report",
    "reveal",
    "yours",
]
