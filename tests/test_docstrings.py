"""Docstrings keep their form: summaries of one line, sections that begin lines, lesson keys that are true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "stabviz").rglob("*.py"))
LESSONS = {path.stem: path.read_text() for path in (ROOT / "lessons").glob("[0-9]*.md")}
SECTION = r"(?:Shapes|Units|Raises|Source|Lesson):"
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def docstrings(path):
    """Yield (name, docstring) of the module and of every class and function in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", path.stem), ast.get_docstring(node) or ""


def broken_summaries(named_docstrings):
    """Return whose summary does not end on its first line: what follows is neither blank nor a section."""
    followed = re.compile(rf"[^\n]*(\n\s*(\n|{SECTION}).*)?", re.DOTALL)
    return [name for name, text in named_docstrings if not followed.fullmatch(text)]


def sections_in_mid_line(named_docstrings):
    return [
        (name, line) for name, text in named_docstrings for line in re.findall(rf".*\S +{SECTION} .*", text)
    ]


def code_of(lesson_text):
    """What a lesson says in code: its fenced blocks, and what stands between backticks."""
    blocks = re.findall(r"^```.*?^```", lesson_text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", lesson_text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(blocks + re.findall(r"`[^`\n]+`", prose))


CODE = {name: code_of(text) for name, text in LESSONS.items()}


def untrue_lessons(named_docstrings):
    """Return (name, lesson) of keys whose lesson does not exist, or says nothing of the function in code."""
    return [
        (name, lesson)
        for name, text in named_docstrings
        for keys in re.findall(r"^Lesson: (.*)$", text, re.MULTILINE)
        for lesson in keys.split(", ")
        if not re.search(rf"\b{name}\b", CODE.get(lesson, ""))
    ]


@each_file
def test_each_summary_is_one_line(path):
    assert broken_summaries(docstrings(path)) == []


@each_file
def test_sections_begin_lines(path):
    assert sections_in_mid_line(docstrings(path)) == []


@each_file
def test_each_lesson_key_names_a_lesson_that_uses_the_function(path):
    assert untrue_lessons(docstrings(path)) == []


def test_the_checks_see_what_they_are_for():
    reflowed = "Draw one curve and\nanother.\n\nUnits: in steps Raises: ValueError\nLesson: 01-attention"
    assert broken_summaries([("f", reflowed)]) == ["f"]
    assert broken_summaries([("f", "One line."), ("g", "One.\n\nMore."), ("h", "One.\nUnits: m")]) == []
    assert sections_in_mid_line([("f", reflowed)]) == [("f", "Units: in steps Raises: ValueError")]
    keyed = "Softmax.\n\nLesson: 01-attention, 02-cross-entropy, 99-none"
    assert untrue_lessons([("no_such_function", keyed)]) == [
        ("no_such_function", lesson) for lesson in ("01-attention", "02-cross-entropy", "99-none")
    ]
    assert untrue_lessons([("scaled_dot_product_attention", "One.\n\nLesson: 01-attention")]) == []
