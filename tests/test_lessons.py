"""Lessons and notebooks: in step, executed, in the shape of the course, with links that lead somewhere."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from lessons.build import LESSONS, NOTEBOOKS, ROOT, notebook_path, read_lesson, sources
from lessons.course import head_of, main_path, pages

FOUND = sources()
WRITTEN = ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12"]
REWORKED = ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12"]
"""Lessons whose every "because" has been tried."""
CALLS = ("panel(", "claim(", "predict(", "reveal(", "quiz(", "exercise(")
SECTIONS = ("The question", "On a real model", "Recap", "Sources")

each_lesson = pytest.mark.parametrize("path", FOUND, ids=[path.stem for path in FOUND])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def without_code(text):
    """Return markdown without fenced blocks and inline code, in which links and headings mean nothing."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL))


def tags(cell):
    return cell.metadata.get("tags", [])


def sections(text):
    """Return {heading: text below it} of the second level."""
    parts = re.split(r"^## +(.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def bullets(text):
    return re.findall(r"^ {0,3}(?:[-*]|\d+\.) +\S", text, re.MULTILINE)


def objectives(text):
    """Return the bullets that follow "you will be able to", up to the next heading."""
    after = re.split(r"you will be able to", text, maxsplit=1, flags=re.IGNORECASE)
    return bullets(re.split(r"^#", after[1], maxsplit=1, flags=re.MULTILINE)[0]) if len(after) == 2 else []


def shape_problems(notebook):
    """Return what a lesson lacks of the shape that all lessons have."""
    text = without_code(prose(notebook))
    code = "\n".join(cell.source for cell in code_cells(notebook))
    below = sections(text)
    problems = []
    if not re.match(r"# \S", text):
        problems.append("begins with no title")
    if "minutes" not in text.split("\n## ")[0]:
        problems.append("does not say how many minutes it takes above its first section")
    if not 3 <= len(objectives(text)) <= 5:
        problems.append(f"has {len(objectives(text))} objectives, not three to five")
    for name in SECTIONS:
        if not any(heading.startswith(name) for heading in below):
            problems.append(f"has no section {name!r}")
    recap = next((body for heading, body in below.items() if heading.startswith("Recap")), "")
    if len(bullets(recap)) != len(objectives(text)):
        problems.append(f"has {len(bullets(recap))} points of recap for {len(objectives(text))} objectives")
    problems += [f"never calls {call[:-1]}" for call in CALLS if call not in code]
    if code.count("Question(") < 3:
        problems.append("asks fewer than three questions in its quiz")
    titles = re.findall(r"^### +(Exercise\b.*)$", text, re.MULTILINE)
    if not 2 <= len(titles) <= 4:
        problems.append(f"has {len(titles)} exercises, not two to four")
    problems += [f"{title!r} names no minutes" for title in titles if "minutes" not in title]
    return problems


def new_shape_problems(notebook):
    """Return what a lesson lacks of causes that were tried, and of room to think."""
    main = main_path(notebook.cells)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    problems = [] if "yours(" in code else ["never calls yours"]
    if not re.search(r"\bablat(e|ion_of)\(", code):
        problems.append("never calls ablate or ablation_of")
    if not any(heading.startswith("Why") for heading in sections(without_code(prose(notebook)))):
        problems.append("has no section 'Why'")
    claims = sum(cell.source.count("claim(") for cell in main if cell.cell_type == "code")
    if claims > 12:
        problems.append(f"shows {claims} claims: at most 12, the others fold under Going deeper")
    if "manual_seed" in code or "np.random" in code:
        problems.append("draws something that no seed offset reaches: use stabviz.seeds.generator")
    return problems


def fold_problems(notebook):
    """Return the folds that JupyterLab would not show as meant: it folds cells, not parts of them."""
    problems, folded_at = [], 0
    for cell in notebook.cells:
        text = without_code(cell.source) if cell.cell_type == "markdown" else ""
        headings = re.findall(r"^(#+) +(.+)$", text, re.MULTILINE)
        begins = text.lstrip().startswith("#")
        if folded_at and begins and len(headings[0][0]) <= folded_at:
            folded_at = 0
        if cell.metadata.get("jp-MarkdownHeadingCollapsed"):
            folded_at = len(headings[0][0])
            if len(cell.source.strip().splitlines()) > 1:
                problems.append(f"{headings[0][1]!r} must stand alone in its cell: put +++ below it")
        elif folded_at:
            ends = [name for marks, name in headings[begins:] if len(marks) <= folded_at]
            problems += [f"{name!r} ends a fold and must begin a cell: put +++ above it" for name in ends]
        if any(name.startswith("Going deeper") for _, name in headings) and not folded_at:
            problems.append(f"{headings[0][1]!r} is not folded")
    return problems


def cell_problems(notebook):
    """Return what keeps the cells of a lesson from being compared, or from being run in-process."""
    problems = []
    for number, cell in enumerate(code_cells(notebook), 1):
        compared = "nbval-ignore-output" not in tags(cell)
        if "nbval-skip" in tags(cell):
            problems.append(f"code cell {number} is skipped by nbval")
        if "claim(" in cell.source and not compared:
            problems.append(f"code cell {number} calls claim, and its output is not compared")
        if re.search(r"^(panel|predict|reveal|quiz)\(", cell.source, re.MULTILINE) and compared:
            problems.append(f"code cell {number} shows a widget without the tag nbval-ignore-output")
        if re.search(r"^\s*[%!]", cell.source, re.MULTILINE):
            problems.append(f"code cell {number} is not plain Python")
            continue
        if "pyplot" in cell.source:
            problems.append(f"code cell {number} uses pyplot")
        if any(map(is_show, ast.parse(cell.source).body[:-1])):
            problems.append(
                f"code cell {number} goes on after show, whose picture only the last line displays"
            )
    return problems


def is_show(statement):
    """Tell `show(...)` as a statement of its own."""
    call = getattr(statement, "value", None)
    return (
        isinstance(statement, ast.Expr)
        and isinstance(call, ast.Call)
        and getattr(call.func, "id", "") == "show"
    )


def execution_problems(notebook):
    """Return what a stored notebook lacks of a clean run from top to bottom."""
    problems = []
    counts = [cell.execution_count for cell in code_cells(notebook) if cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        problems.append(f"was not executed once from top to bottom: {counts}")
    for cell in code_cells(notebook):
        if "raises-exception" not in tags(cell) and any(out.output_type == "error" for out in cell.outputs):
            problems.append(f"stores an error of {cell.source.splitlines()[0]!r}")
        if any("widget-view" in mime for out in cell.outputs for mime in out.get("data", {})):
            problems.append("stores a widget that no kernel stands behind")
    if "widgets" in notebook.metadata:
        problems.append("stores the state of widgets")
    return problems


def content(notebook):
    """Return what source and notebook must have in common."""
    return [(cell.cell_type, cell.source, cell.id, tags(cell)) for cell in notebook.cells]


def anchors(path):
    """Return the anchors of a page: JupyterLab's form for a notebook, GitHub's for a text."""
    is_notebook = path.suffix == ".ipynb"
    text = prose(nbformat.read(path, as_version=4)) if is_notebook else path.read_text()
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"`", "", text), re.MULTILINE)
    explicit = set(re.findall(r"""<a (?:id|name)=["']([^"']+)""", text))
    if is_notebook:
        return explicit | {heading.replace(" ", "-") for heading in headings}
    return explicit | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_problems(text, page):
    """Return the links in `text` that lead nowhere when read as `page`."""
    problems = []
    bare = without_code(text)
    targets = re.findall(r"\]\(<?([^)\s>]+)", bare) + re.findall(r"""(?:src|href)=["']([^"']+)""", bare)
    for target in targets:
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / unquote(place)).resolve() if place else page
        if not file.exists():
            problems.append(f"{target}: no such file")
        elif anchor and unquote(anchor) not in anchors(file):
            problems.append(f"{target}: no such heading")
    return problems


def test_the_lessons_so_far_are_written():
    assert [path.stem[:2] for path in FOUND][: len(WRITTEN)] == WRITTEN


def test_every_lesson_has_a_notebook_and_every_notebook_a_lesson():
    assert {path.stem for path in FOUND} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}


def test_lessons_holds_nothing_but_lessons_and_their_tools():
    assert {path for path in LESSONS.iterdir() if path.is_file()} == {
        *FOUND,
        *(LESSONS / name for name in ("build.py", "claims.py", "course.py")),
    }


@each_lesson
def test_lesson_and_notebook_agree(path):
    stored = nbformat.read(notebook_path(path), as_version=4)
    assert content(stored) == content(read_lesson(path)), f"run: make lessons LESSON={path.stem[:2]}"


@each_lesson
def test_notebook_was_executed_whole(path):
    assert execution_problems(nbformat.read(notebook_path(path), as_version=4)) == []


@each_lesson
def test_lesson_has_the_shape_of_the_course(path):
    assert shape_problems(read_lesson(path)) == []


@pytest.mark.parametrize("path", [p for p in FOUND if p.stem[:2] in REWORKED], ids=lambda path: path.stem)
def test_lesson_tries_its_causes_and_leaves_room_to_think(path):
    assert new_shape_problems(read_lesson(path)) == []
    assert 40 <= head_of(path).minutes <= 75


def test_what_is_written_from_the_lessons_heads_is_up_to_date():
    stale = [path.name for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m lessons.course"


@each_lesson
def test_what_goes_deeper_is_folded(path):
    assert fold_problems(read_lesson(path)) == []


@each_lesson
def test_cells_are_compared_and_plain(path):
    assert cell_problems(read_lesson(path)) == []


@each_lesson
def test_links_of_lesson_resolve(path):
    assert link_problems(prose(read_lesson(path)), notebook_path(path)) == []


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("data/**/*.md")]), ids=str)
def test_links_of_text_resolve(page):
    assert link_problems(page.read_text(), page) == []


# The checks themselves: a lesson that breaks each rule is caught. -------------------------------------------

HEADER = """---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---

"""
GOOD = """# 99 A lesson

About 40 minutes. After this lesson you will be able to

- one
- two
- three

## The question

## Exercises

### Exercise 1: a (easy, 5 minutes)

### Exercise 2: b (harder, 10 minutes)

## On a real model and on a GPU

## Recap

- one
- two
- three

## Sources

```{code-cell} ipython3
:tags: [nbval-ignore-output]

panel(run, knobs)
predict("n", 1)
reveal("n", 1)
quiz("99", [Question(1), Question(2), Question(3)])
```

```{code-cell} ipython3
claim("s", True, measured=1)
exercise("e", check)
```
"""


def lesson(tmp_path, text):
    path = tmp_path / "99-a-lesson.md"
    path.write_text(HEADER + text)
    return read_lesson(path)


def test_a_good_lesson_has_no_problems(tmp_path):
    notebook = lesson(tmp_path, GOOD)
    assert len(code_cells(notebook)) == 2
    assert shape_problems(notebook) + cell_problems(notebook) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# 99 A lesson", "A lesson", "title"),
        ("About 40 minutes.", "", "minutes it takes"),
        ("- two\n- three\n\n## The", "\n\n## The", "objectives"),
        ("- two\n- three\n\n## Sources", "\n\n## Sources", "recap"),
        ("## Sources", "## Literature", "'Sources'"),
        ("claim(", "assert_(", "never calls claim"),
        ("panel(", "plot(", "never calls panel"),
        ("Question(3)", "", "three questions"),
        ("### Exercise 2", "### Exercises 2", "1 exercises"),
        ("10 minutes", "long", "names no minutes"),
    ],
)
def test_a_lesson_out_of_shape_is_caught(tmp_path, old, new, problem):
    assert old in GOOD
    problems = shape_problems(lesson(tmp_path, GOOD.replace(old, new)))
    assert any(problem in each for each in problems), problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (":tags: [nbval-ignore-output]\n", "", "without the tag"),
        ("claim(", ":tags: [nbval-ignore-output]\n\nclaim(", "not compared"),
        ("claim(", ":tags: [nbval-skip]\n\nclaim(", "skipped"),
        ("claim(", "%time claim(", "plain Python"),
        ("claim(", "import matplotlib.pyplot\nclaim(", "pyplot"),
        ("claim(", 'show(figure, "lost")\nclaim(', "goes on after show"),
    ],
)
def test_a_cell_that_nothing_compares_is_caught(tmp_path, old, new, problem):
    assert old in GOOD
    problems = cell_problems(lesson(tmp_path, GOOD.replace(old, new, 1)))
    assert any(problem in each for each in problems), problems


FOLDED = """
+++ {"jp-MarkdownHeadingCollapsed": true}

### Going deeper: a

+++

Words.

+++

## Sources
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        ("a\n\n+++\n", "a\n", "alone in its cell"),
        ("Words.\n\n+++\n", "Words.\n", "begin a cell"),
        (' {"jp-MarkdownHeadingCollapsed": true}', "", "is not folded"),
    ],
)
def test_a_fold_that_jupyterlab_would_not_show_is_caught(tmp_path, old, new, problem):
    assert old in FOLDED
    problems = fold_problems(lesson(tmp_path, FOLDED.replace(old, new, 1)))
    assert [problem in each for each in problems] == ([True] if problem else [])


TRIED = """
## Why

```{code-cell} ipython3
found = lab.ablate(broken, healthy, {})
mine = yours(step, otherwise=ops.sgd_step)
draw = generator(0, "rows")
CLAIMS
```
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        ("ablate", "train", "never calls ablate"),
        ("yours(step", "mine(step", "never calls yours"),
        ("## Why", "## How", "section 'Why'"),
        ("CLAIMS", "claim()\n" * 13, "shows 13 claims"),
        ('generator(0, "rows")', "torch.Generator().manual_seed(0)", "no seed offset reaches"),
    ],
)
def test_a_cause_that_nobody_tried_is_caught(tmp_path, old, new, problem):
    assert old in TRIED
    problems = new_shape_problems(lesson(tmp_path, TRIED.replace(old, new, 1)))
    assert [problem in each for each in problems] == ([True] if problem else [])


def executed(tmp_path):
    notebook = lesson(tmp_path, GOOD)
    for number, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("display_data", {"text/plain": "1"})]
    return notebook


def test_a_clean_execution_passes_and_each_flaw_is_caught(tmp_path):
    assert execution_problems(executed(tmp_path)) == []

    never_run = executed(tmp_path)
    code_cells(never_run)[1].execution_count = None
    assert "from top to bottom" in execution_problems(never_run)[0]

    failed = executed(tmp_path)
    code_cells(failed)[0].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[]))
    assert "stores an error" in execution_problems(failed)[0]
    code_cells(failed)[0].metadata["tags"] = ["raises-exception"]
    assert execution_problems(failed) == []

    with_widget = executed(tmp_path)
    code_cells(with_widget)[0].outputs[0]["data"]["application/vnd.jupyter.widget-view+json"] = {}
    with_widget.metadata["widgets"] = {}
    assert len(execution_problems(with_widget)) == 2


def test_a_notebook_that_disagrees_with_its_lesson_is_caught(tmp_path):
    one, other = lesson(tmp_path, GOOD), lesson(tmp_path, GOOD.replace("measured=1", "measured=2"))
    assert content(one) == content(lesson(tmp_path, GOOD))
    assert content(one) != content(other)
    one.cells[-1].metadata["tags"] = ["raises-exception"]
    assert content(one) != content(lesson(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("[a](there.md)", None),
        ("[a](there.md#a-heading-with-code)", None),
        ("[a](#here)", None),
        ('<img src="there.md">', None),
        ("[a](https://example.org/nowhere)", None),
        ("`[a](nowhere.md)`", None),
        ("[a](nowhere.md)", "no such file"),
        ("![a](nowhere.png)", "no such file"),
        ('<img src="nowhere.png">', "no such file"),
        ("[a](there.md#nowhere)", "no such heading"),
        ("[a](#nowhere)", "no such heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_caught(tmp_path, link, problem):
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{link}\n")
    Path(tmp_path / "there.md").write_text("## A heading, with `code`\n")
    problems = link_problems(page.read_text(), page)
    assert len(problems) == (problem is not None)
    assert all(problem in each for each in problems)
