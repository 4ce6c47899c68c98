"""What is written about a lesson in more than one place is counted and written from the lesson itself."""

import pytest

from lessons import course
from lessons.build import read_lesson
from lessons.course import Head, closing, head_of, main_path, opening, replaced, table

LESSON = """---
kernelspec:
  display_name: Python 3
  name: python3
stabviz:
  shows: one thing and another
---

# 04 Gradient clipping

<!-- head -->
<!-- /head -->

WORDS

Things to try:

1. Move it up.
2. Move it
   down again.

And then to try here:

1. A third.

Not a task:

1. A step of a list.

### Exercise 1: build (easy, 10 minutes)

### Exercise 2: decide (medium, 15 minutes)

<details><summary>Solution</summary>

word word word
</details>

+++ {"jp-MarkdownHeadingCollapsed": true}

### Going deeper: an aside

+++

word word word

```{code-cell} ipython3
folded = 1
```

#### Deeper still

word

+++

### Open again

```{code-cell} ipython3
shown = 1
```
"""


@pytest.fixture
def lesson(tmp_path):
    path = tmp_path / "04-gradient-clipping.md"
    path.write_text(LESSON.replace("WORDS", "word " * 560))
    return path


def test_head_of_counts_reading_exercises_and_panels(lesson):
    head = head_of(lesson)
    assert (head.stem, head.title, head.shows) == (
        lesson.stem,
        "04 Gradient clipping",
        "one thing and another",
    )
    assert head.reading == 4  # 560 words and some 60 around them, at 200 a minute
    assert head.exercises == 25
    assert head.panels == 6
    assert head.minutes == 35


def test_main_path_leaves_out_what_is_folded_up_to_the_next_heading_of_its_level(lesson):
    main = [cell.source for cell in main_path(read_lesson(lesson).cells)]
    assert "shown = 1" in main
    assert "folded = 1" not in main
    assert not any("Going deeper" in source or "Deeper still" in source for source in main)
    assert any(source.startswith("### Open again") for source in main)


@pytest.mark.parametrize(
    ("old", "new", "lacks"),
    [
        ("  shows: one thing and another", "  other: 1", "shows: in its front"),
        ("# 04 Grad", "# Grad", "a title"),
    ],
)
def test_head_of_names_what_is_missing(lesson, old, new, lacks):
    lesson.write_text(lesson.read_text().replace(old, new))
    with pytest.raises(ValueError, match=lacks):
        head_of(lesson)


def test_lines_and_table_say_what_the_heads_say(lesson):
    head = head_of(lesson)
    first = Head(stem="03-adam", title="03 Adam", shows="steps", reading=1, exercises=2, panels=4)
    line = opening(head, first)
    assert line.startswith("About 35 minutes: 4 of reading, 25 of exercises, 6 at the panels.")
    assert line.endswith("Before this: [03 Adam](03-adam.ipynb).")
    assert "Nothing comes before" in opening(first, None)
    assert closing(head) == "Next: [04 Gradient clipping](04-gradient-clipping.ipynb): one thing and another."
    lines = table([first, head], "notebooks/").splitlines()
    assert lines[2] == "| [03 Adam](notebooks/03-adam.ipynb) | steps | 7 |"
    assert len(lines) == 4 + len(course.COMING)
    assert lines[-1].endswith("| coming |")


def test_replaced_changes_what_stands_between_the_comments_and_nothing_else():
    text = "a\n<!-- head -->\nold\n<!-- /head -->\nb\n<!-- next -->\n<!-- /next -->\n"
    once = replaced(text, "head", r"new \\1")
    assert once.startswith("a\n<!-- head -->\n\nnew \\\\1\n\n<!-- /head -->\nb\n")
    assert replaced(once, "head", r"new \\1") == once
    assert replaced(text, "course", "x") == text


def test_write_writes_only_what_is_out_of_date(lesson, monkeypatch):
    (lesson.parent / "README.md").write_text("# R\n<!-- course -->\n<!-- /course -->\n")
    monkeypatch.setattr(course, "sources", lambda: [lesson])
    monkeypatch.setattr(course, "ROOT", lesson.parent)
    assert course.write() == [lesson, lesson.parent / "README.md"]
    assert "About 35 minutes" in lesson.read_text()
    assert (
        "| [04 Gradient clipping](notebooks/04-gradient-clipping.ipynb) |"
        in (lesson.parent / "README.md").read_text()
    )
    assert course.write() == []
