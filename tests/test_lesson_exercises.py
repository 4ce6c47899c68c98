"""Every exercise of a lesson has a solution that its check accepts, and wrong ones that it rejects."""

import re

import pytest

from lessons.build import sources
from stabviz.course.exercises import find_check, imports_of, judge, run_solution, solutions_in

LESSONS = {path.stem: path.read_text() for path in sources()}
SOLUTIONS = [(name, solution) for name, text in LESSONS.items() for solution in solutions_in(text)]
EXERCISE = re.compile(r"""^@exercise\(["']([^"']+)["']""", re.MULTILINE)


def outside_details(text):
    return re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", LESSONS)
def test_each_exercise_has_one_solution_folded_under_it(name):
    text = LESSONS[name]
    asked = EXERCISE.findall(outside_details(text))
    assert asked
    assert all(exercise.startswith(name[:2]) for exercise in asked)
    assert [solution.name for solution in solutions_in(text)] == asked
    assert len(re.findall(r"# solution: ", outside_details(text))) == 0


each_solution = pytest.mark.parametrize(("name", "solution"), SOLUTIONS, ids=[s.name for _, s in SOLUTIONS])


@each_solution
def test_solution_passes_its_check(name, solution):
    judgement = run_solution(solution, imports_of(LESSONS[name]))
    assert judgement.kind == "done", judgement.message


@each_solution
def test_two_wrong_solutions_fail_and_are_told_why(name, solution):
    check = find_check(solution.name)
    assert len(check.wrong) >= 2
    for wrong in check.wrong:
        judgement = judge(check.function, wrong)
        assert judgement.kind == "wrong", f"{wrong.__name__} is taken for {judgement.kind}"
        assert len(judgement.message) > 10
