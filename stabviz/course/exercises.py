"""`exercise`: the learner's function is checked in the cell that defines it, and told kindly how it did.

In the lesson (a code cell; the check is found by the exercise's name):

    @exercise("03-adam-step")
    def adam_step(param, grad, ...):
        ...

The check and at least four plausible wrong answers, in stabviz/course/checks/lesson_03.py:

    @check("03-adam-step", wrong=[forgets_the_root, forgets_to_correct])
    def adam_step_is_right(solution):
        expect("the first step at lr 0.1", solution(...), -0.1)

The solution, folded under the cell in Markdown. Its block begins with the name, and is a whole cell to paste:

    <details><summary>Solution</summary>

    ```python
    # solution: 03-adam-step
    @exercise("03-adam-step")
    def adam_step(param, grad, ...):
        return ...
    ```
    </details>

A test takes each solution out with `solutions_in`, runs it with `run_solution`, and runs every `wrong`
through `judge`."""

import ast
import functools
import importlib
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stabviz.course.progress import load, try_to_record

_NOT_ATTEMPTED = "not attempted yet. Replace the ... and run the cell again."


class ExerciseFailed(AssertionError):
    """The learner's function is not right yet; the text says what came out and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a check says of a function."""

    kind: str
    """"done", "wrong" or "not attempted"."""
    message: str
    """One or a few lines for the learner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check with wrong answers that it must reject."""

    name: str
    """Name of the exercise: lesson number, then what it is about."""
    function: Callable
    """`function(solution)` returns if the solution is right, and raises ExerciseFailed if not."""
    wrong: tuple
    """Plausible wrong solutions, four or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A solution as it stands in a lesson."""

    name: str
    """Name of the exercise."""
    code: str
    """Text of the whole cell."""


CHECKS: dict[str, Check] = {}
"""Checks by the name of their exercise; filled when a module of stabviz.course.checks is imported."""


def check(name: str, *, wrong) -> Callable:
    """Register the decorated function as the check of an exercise.

    Raises: ValueError if the name does not begin with a lesson's number, or fewer than four wrong answers
            are given
    """
    if not re.match(r"\d\d-", name):
        raise ValueError(f"check: name must begin with two digits, as 03-adam-step; got {name!r}")
    if len(wrong) < 4:
        raise ValueError(f"check: wrong must hold four or more functions for {name}; got {len(wrong)}")

    def register(function):
        CHECKS[name] = Check(name=name, function=function, wrong=tuple(wrong))
        return function

    return register


def find_check(name: str) -> Check:
    """Return the check of an exercise from stabviz/course/checks/lesson_NN.py."""
    if name not in CHECKS:
        importlib.import_module(f"stabviz.course.checks.lesson_{name[:2]}")
    if name not in CHECKS:
        raise ValueError(f"exercise: name must be one of {sorted(CHECKS)}; got {name!r}")
    return CHECKS[name]


def exercise(name: str, check: Callable | None = None) -> Callable:
    """Check the decorated function at once, print how it did, and record it. Never raises for a wrong answer.

    `check(solution)` may be given; else it is found by name.

    Lesson: 00-start-here
    """
    function_of_check = check or find_check(name).function

    def decorate(function):
        judgement = judge(function_of_check, function)
        mark = {"done": "✓", "wrong": "✗", "not attempted": "○"}[judgement.kind]
        solved_before = load()["exercises"].get(name, {}).get("done", False)
        stays = solved_before and judgement.kind == "wrong"
        also = " You solved it before, and solved it stays." if stays else ""
        print(f"{mark} exercise {name}: {judgement.message}{also}", flush=True)
        if judgement.kind != "not attempted":
            try_to_record("exercises", name, done=solved_before or judgement.kind == "done")
        function.judgement = judgement
        return function

    return decorate


def yours(function: Callable, *, otherwise: Callable) -> Callable:
    """Return the learner's function if its exercise is solved, else `otherwise`, and print which.

    Raises: ValueError if `function` was not decorated by `exercise`

    >>> @exercise("99-double", check=lambda solution: expect("twice 2", solution(2), 4))
    ... def double(x):
    ...     ...
    ○ exercise 99-double: not attempted yet. Replace the ... and run the cell again.
    >>> yours(double, otherwise=abs).__name__
    Not solved yet: what follows runs with stabviz's own abs instead of your double.
    'abs'
    """
    judgement = getattr(function, "judgement", None)
    if judgement is None:
        raise ValueError(f"yours: function must be one that `exercise` decorates; got {function!r}")
    mine, ours = function.__name__, otherwise.__name__
    if judgement.kind == "done":
        print(f"What follows runs with your own {mine}.", flush=True)
        return function
    print(f"Not solved yet: what follows runs with stabviz's own {ours} instead of your {mine}.", flush=True)
    return otherwise


def judge(check: Callable, function: Callable) -> Judgement:
    """Run a check on a function. Only a fault in the course itself raises."""
    if _is_untouched(function):
        return Judgement(kind="not attempted", message=_NOT_ATTEMPTED)
    watched = _watch(function)
    try:
        check(watched)
    except _ReturnedNothing as nothing:
        reason = (
            "It came to a `return` without a value." if _returns_none(function) else "Is a `return` missing?"
        )
        message = f"your function returned {nothing}. {reason}"
    except _Raised as raised:
        error = raised.__cause__
        if isinstance(error, NotImplementedError):
            return Judgement(kind="not attempted", message=_NOT_ATTEMPTED)
        message = f"your function stopped with {type(error).__name__}: {error}{_at_line(error, function)}"
    except AssertionError as failed:
        message = str(failed) or "not right yet; look at the hint below."
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        if watched.calls == 0:  # the check stumbled before the learner's code ran: a fault of ours
            raise
        message = f"what your function returned could not be used ({type(error).__name__}: {error}). "
        message += f"It returned {watched.last!r:.200}"
    else:
        if watched.calls == 0:
            raise RuntimeError("judge: the check must call the function at least once; it did not")
        return Judgement(kind="done", message="done. Well solved.")
    return Judgement(kind="wrong", message=message)


def expect(what: str, got, expected, *, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """Compare numbers or arrays, shape first, and say both in words if they differ.

    Raises: ExerciseFailed with what was compared, what came out and what was expected

    >>> expect("half of three", 1.5, 1.5)
    """
    try:
        got_array = np.asarray(_as_numpy(got), dtype=np.float64)
    except (TypeError, ValueError):
        raise ExerciseFailed(f"{what}: expected numbers; got {type(got).__name__} {got!r:.100}") from None
    expected_array = np.asarray(_as_numpy(expected), dtype=np.float64)
    if got_array.shape != expected_array.shape:
        raise ExerciseFailed(f"{what}: expected shape {expected_array.shape}; got shape {got_array.shape}")
    if not np.allclose(got_array, expected_array, rtol=rtol, atol=atol, equal_nan=True):
        raise ExerciseFailed(f"{what}: expected {_one_line(expected_array)}; got {_one_line(got_array)}")


def things(answer, *names: str):
    """Return what a function should return together, or say what that is.

    Raises: ExerciseFailed unless it is a tuple or list of one thing for each name
    """
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        raise ExerciseFailed(f"return {len(names)} things: {', '.join(names)}; got {answer!r:.100}")
    return answer


def expect_decision(
    answer, *, stories: tuple[str, str], runs: Mapping[str, tuple[str, str]], because: Mapping[str, str]
) -> None:
    """Check the choice of two runs that tell two stories apart, each with what both stories predict of it.

    `runs` holds what the stories predict of each run on offer; where they agree, it decides nothing.
    `because` says more of a run to whoever chose or predicted wrongly. An answer is a dict: the name of a run
    -> the two predictions in the order of `stories`, or a dict of them by story.

    Raises: ExerciseFailed with the mistake

    >>> runs = {"a": ("falls", "stays"), "b": ("stays", "falls"), "c": ("stays", "stays")}
    >>> answer = {"a": ("falls", "stays"), "b": {"rate": "stays", "size": "falls"}}
    >>> expect_decision(answer, stories=("rate", "size"), runs=runs, because={})
    """
    of_both = " and ".join(stories)
    if not isinstance(answer, dict) or len(answer) != 2:
        raise ExerciseFailed(
            f"return a dict of two runs, each with what {of_both} predict; got {answer!r:.100}"
        )
    words = sorted({word for pair in runs.values() for word in pair})
    for run, said in answer.items():
        if run not in runs:
            raise ExerciseFailed(f"{run!r:.60} is not on offer; choose from {', '.join(runs)}")
        if isinstance(said, dict) and said.keys() == set(stories):
            said = tuple(said[story] for story in stories)
        if not isinstance(said, tuple | list) or len(said) != 2 or any(word not in words for word in said):
            raise ExerciseFailed(
                f"{run}: give what {of_both} predict, each one of {words}; got {said!r:.100}"
            )
        hint = because.get(run, "ask of each story: is what it blames still there in this run?")
        if runs[run][0] == runs[run][1]:
            raise ExerciseFailed(
                f"{run}: both stories predict {runs[run][0]!r}, so it decides nothing; {hint}"
            )
        if said[0] == said[1]:
            raise ExerciseFailed(
                f"{run}: if both stories predict {said[0]!r}, the run decides nothing; {hint}"
            )
        if tuple(said) != runs[run]:
            raise ExerciseFailed(f"{run}: {of_both} do not predict {said!r}; {hint}")


def solutions_in(markdown_text: str) -> list[Solution]:
    """Return every solution of a lesson's source, in order."""
    pattern = re.compile(r"^(`{3,})python\n# solution: (\S+)\n(.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
    return [Solution(name=name, code=code) for _, name, code in pattern.findall(markdown_text)]


def imports_of(markdown_text: str) -> dict:
    """Return the names that a lesson's code cells import: what a solution may use without saying so."""
    namespace: dict = {}
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```\s*$", markdown_text, re.DOTALL | re.MULTILINE)
    for cell in cells:
        # options at the head of a cell and lines for IPython are no Python
        body = re.sub(r"\A(?::\w.*\n|---\n(?:.*\n)*?---\n)+", "", cell)
        body = re.sub(r"^[ \t]*[%!].*$", "", body, flags=re.MULTILINE)
        for node in ast.parse(body).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), "<lesson>", "exec"), namespace)
    return namespace


def run_solution(solution: Solution, namespace: dict) -> Judgement:
    """Run a solution's cell and judge the last function that it defines with the registered check."""
    names = [node.name for node in ast.parse(solution.code).body if isinstance(node, ast.FunctionDef)]
    if not names:
        raise ValueError(f"run_solution: the block of {solution.name} must define a function; got none")
    space = dict(namespace)
    exec(compile(solution.code, f"<solution {solution.name}>", "exec"), space)
    return judge(find_check(solution.name).function, space[names[-1]])


# Both pass through a check that catches Exception.
class _ReturnedNothing(BaseException):
    """Says that the learner's function returned None or an ellipsis."""


class _Raised(BaseException):
    """Carries what the learner's function raised, apart from what the check itself raises."""


def _watch(function):
    @functools.wraps(function)
    def watched(*args, **kwargs):
        watched.calls += 1
        try:
            watched.last = function(*args, **kwargs)
        except Exception as error:
            raise _Raised from error
        if watched.last is None or watched.last is Ellipsis:
            raise _ReturnedNothing(repr(watched.last))
        return watched.last

    # calls tell a fault of the check from one of the solution: without a call it cannot be the solution's
    watched.calls, watched.last = 0, None
    return watched


def _is_untouched(function) -> bool:
    """True if the body does nothing, or still holds a `...` that stands for code (not one in an index)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    nodes = list(ast.walk(tree))
    dots = [id(node) for node in nodes if isinstance(node, ast.Constant) and node.value is Ellipsis]
    indices = [node.slice for node in nodes if isinstance(node, ast.Subscript)]  # x[..., 0] is code
    if set(dots) - {id(inside) for index in indices for inside in ast.walk(index)}:
        return True
    body = getattr(tree.body[0], "body", None)
    # a docstring, `pass`, `return` and `return None` do nothing
    return isinstance(body, list) and all(
        isinstance(node, ast.Pass)
        or isinstance(node, ast.Expr | ast.Return)
        and isinstance(node.value, ast.Constant | None)
        and (isinstance(node, ast.Expr) or node.value is None or node.value.value is None)
        for node in body
    )


def _returns_none(function) -> bool:
    """True if the source holds a bare `return` or a `return None`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return any(value is None or isinstance(value, ast.Constant) and value.value is None for value in returned)


def _at_line(error, function) -> str:
    """Quote the line of the learner's own code at which the error came out."""
    # the innermost frame of the learner's cell: deeper ones are torch's, and say nothing to a learner
    frame, line = error.__traceback__, ""
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == function.__code__.co_filename:
            line = linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno).strip()
        frame = frame.tb_next
    return f", at `{line}`" if line else ""


def _as_numpy(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _one_line(array) -> str:
    return np.array2string(array, precision=5, threshold=8, separator=", ").replace("\n", " ")
