"""Exercises: kind to the untouched, helpful to the wrong, and right to the right."""

import linecache
import re

import numpy as np
import pytest
import torch

from stabviz.course import exercise, expect, yours
from stabviz.course.exercises import (
    CHECKS,
    ExerciseFailed,
    check,
    find_check,
    imports_of,
    judge,
    run_solution,
    solutions_in,
)
from stabviz.course.progress import load


def halve_is_right(solution):
    expect("half of 3", solution(3.0), 1.5)


def learner(code):
    """Return the function that a learner's cell defines, with its source known, as IPython has it."""
    name = f"<cell {abs(hash(code))}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    space = {"torch": torch}
    exec(compile(code, name, "exec"), space)
    return space["halve"]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("...", "not attempted", "Replace the ..."),
        ("'''Halve.'''", "not attempted", "not attempted yet"),
        ("pass", "not attempted", "not attempted yet"),
        ("return None", "not attempted", "not attempted yet"),
        ("raise NotImplementedError", "not attempted", "not attempted yet"),
        ("scale = ...\n    return x * scale", "not attempted", "Replace the ..."),
        ("y = x / 2", "wrong", "Is a `return` missing?"),
        ("if x > 0:\n        return None\n    return x / 2", "wrong", "came to a `return` without a value"),
        ("return x * 2", "wrong", "half of 3: expected 1.5; got 6."),
        ("return torch.tensor([x / 2])", "wrong", r"expected shape \(\); got shape \(1,\)"),
        ("return 'half'", "wrong", "expected numbers; got str 'half'"),
        ("return x / 0", "wrong", "stopped with ZeroDivisionError: .*, at `return x / 0`"),
        ("return x / 2", "done", "done"),
        ("return torch.full((2,), x)[..., 0] / 2", "done", "done"),
    ],
)
def test_judgement(body, kind, words):
    judgement = judge(halve_is_right, learner(f"def halve(x):\n    {body}\n"))
    assert judgement.kind == kind, judgement
    assert re.search(words, judgement.message), judgement.message


@pytest.mark.parametrize(
    ("body", "mark", "entry"), [("...", "○", None), ("return x", "✗", False), ("return x / 2", "✓", True)]
)
def test_exercise_prints_one_line_records_and_gives_the_function_back(capsys, body, mark, entry):
    function = learner(f"def halve(x):\n    {body}\n")
    assert exercise("03-halve", halve_is_right)(function) is function
    out = capsys.readouterr().out
    assert out.startswith(f"{mark} exercise 03-halve: ")
    assert out.count("\n") == 1
    assert load()["exercises"].get("03-halve", {}).get("done") == entry


def test_fault_of_the_check_itself_is_not_blamed_on_the_learner():
    def broken(solution):
        raise TypeError("the check")

    with pytest.raises(TypeError, match="the check"):
        judge(broken, learner("def halve(x):\n    return x / 2\n"))
    with pytest.raises(RuntimeError, match="must call the function"):
        judge(lambda solution: None, learner("def halve(x):\n    return x / 2\n"))


def test_check_may_differentiate_and_batch_the_learners_function():
    def uses_transforms(solution):
        expect("slope", torch.func.grad(solution)(torch.tensor(3.0)), 0.5)
        expect("batch", torch.func.vmap(solution)(torch.tensor([2.0, 4.0, 6.0])), [1.0, 2.0, 3.0])

    assert judge(uses_transforms, learner("def halve(x):\n    return x / 2\n")).kind == "done"


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (np.array([1.0, 2.0]), r"a: expected shape \(3,\); got shape \(2,\)"),
        ([1.0, 2.0, 3.1], r"a: expected \[1., 2., 3.\]; got \[1. , 2. , 3.1\]"),
        ([1.0, 2.0, float("nan")], "got"),
    ],
)
def test_expect_says_what_came_out(got, words):
    with pytest.raises(ExerciseFailed, match=words):
        expect("a", got, [1.0, 2.0, 3.0])


LESSON = """
```{code-cell} ipython3
:tags: [nbval-ignore-output]

import math
from math import sqrt as root
undefined_here = lab.train()
```

<details><summary>Solution</summary>

```python
# solution: 98-root
@exercise("98-root")
def double_root(x):
    return 2 * root(x)
```
</details>

```python
# not a solution
```
"""


def test_solution_is_taken_out_of_a_lesson_and_judged(capsys):
    def forgets_two(x):
        return x**0.5

    def forgets_root(x):
        return 2 * x

    def adds_two(x):
        return 2 + x**0.5

    def swaps_them(x):
        return (2 * x) ** 0.5

    @check("98-root", wrong=[forgets_two, forgets_root, adds_two, swaps_them])
    def root_is_right(solution):
        expect("twice the root of 9", solution(9.0), 6.0)

    try:
        (solution,) = solutions_in(LESSON)
        assert solution.name == "98-root"
        namespace = {**imports_of(LESSON), "exercise": exercise}
        assert run_solution(solution, namespace).kind == "done"
        assert [judge(root_is_right, each).kind for each in find_check("98-root").wrong] == ["wrong"] * 4
    finally:
        del CHECKS["98-root"]


def test_check_needs_a_lesson_and_four_wrong_answers():
    with pytest.raises(ValueError, match="two digits"):
        check("halve", wrong=[abs] * 4)
    with pytest.raises(ValueError, match="four or more functions"):
        check("03-halve", wrong=[abs] * 3)


def test_solved_stays_solved_when_a_later_try_is_wrong(capsys):
    def is_half(solution):
        expect("half of 3", solution(3.0), 1.5)

    exercise("99-half", is_half)(lambda x: x / 2)
    exercise("99-half", is_half)(lambda x: x * 2)
    assert load()["exercises"]["99-half"]["done"]
    assert "You solved it before, and solved it stays." in capsys.readouterr().out
    exercise("99-other", is_half)(lambda x: x * 2)
    assert not load()["exercises"]["99-other"]["done"]
    assert "solved it before" not in capsys.readouterr().out


def test_yours_is_the_learners_function_once_it_is_solved(capsys):
    def is_half(solution):
        expect("half of 3", solution(3.0), 1.5)

    right, wrong = (exercise("99-half", is_half)(function) for function in (lambda x: x / 2, lambda x: x))
    assert yours(right, otherwise=abs) is right
    assert "with your own" in capsys.readouterr().out
    assert yours(wrong, otherwise=abs) is abs
    assert "stabviz's own abs instead of your" in capsys.readouterr().out
    with pytest.raises(ValueError, match="must be one that `exercise` decorates"):
        yours(abs, otherwise=abs)
