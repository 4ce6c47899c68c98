"""What is said of the course in more than one place, written from the lessons' heads: `make lessons`.

Each lesson says in its front matter what it `shows`; its title, its exercises' minutes and its panels' tasks
stand in its text. From these come the line below each title, the link to the next lesson, and the tables in
README.md and lesson 00, each between two comments such as `<!-- head -->` and `<!-- /head -->`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import jupytext

from lessons.build import LESSONS, ROOT, read_lesson, sources
from stabviz.files import write_atomically

WORDS_A_MINUTE = 200
MINUTES_A_TASK = 2

COMING = (
    (
        "13",
        "Generalisation",
        "over- and underfitting, dropout, early stopping, augmentation, weight averaging",
    ),
    ("14", "Adversarial training", "attacks on embeddings and words, accuracy under attack"),
    ("15", "Consistency", "contrastive fine-tuning: equal answers to equal questions"),
    ("16", "Distillation", "soft labels, temperature, churn between versions of a model"),
    ("17", "Compression", "pruning, int8, outlier features: which predictions flip"),
    ("18", "Adapting", "frozen features, freezing, rates by layer, adapters, LoRA"),
    ("19", "Generation", "greedy loops, nucleus sampling, answers that depend on the batch"),
    (
        "20",
        "Serving and watching",
        "a served model: versions, limits, personal data, drift that raises an alarm",
    ),
    ("21", "Rescue", "unknown runs that fail: name the cause, mend it, prove it"),
)
"""The one place that names lessons which are not written yet: number, title, what they will show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the course says of a lesson elsewhere."""

    stem: str
    """Name of its files, such as "04-gradient-clipping"."""
    title: str
    """Such as "04 Gradient clipping"."""
    shows: str
    """One line for the tables: what the learner sees."""
    reading: int
    exercises: int
    panels: int
    """Minutes."""

    @property
    def minutes(self) -> int:
        """Honest minutes of a learner's time, all together."""
        return self.reading + self.exercises + self.panels


def head_of(path: Path) -> Head:
    """Read a lesson's head.

    Raises: ValueError that names the lesson and what its front matter or its text lacks
    """
    text = path.read_text(encoding="utf-8")
    shows = jupytext.read(path, fmt="md:myst").metadata.get("stabviz", {}).get("shows")
    title = re.search(r"^# (\d\d \S.*)$", text, re.MULTILINE)
    if not shows or not title:
        lacks = "a title such as '# 04 Gradient clipping'" if shows else "stabviz: shows: in its front matter"
        raise ValueError(f"course: {path.name} must have {lacks}")
    main = main_path(read_lesson(path).cells)
    words = sum(len(without_folds(cell.source).split()) for cell in main)
    prose = "\n\n".join(cell.source for cell in main if cell.cell_type == "markdown")
    return Head(
        stem=path.stem,
        title=title.group(1),
        shows=shows,
        reading=math.ceil(words / WORDS_A_MINUTE),
        exercises=exercise_minutes(prose),
        panels=MINUTES_A_TASK * panel_tasks(prose),
    )


def main_path(cells: list) -> list:
    """Return the cells that are not folded: not below a heading that JupyterLab shows collapsed."""
    kept, folded_at = [], 0
    for cell in cells:
        heading = re.match(r"(#+) ", cell.source) if cell.cell_type == "markdown" else None
        if heading and folded_at and len(heading.group(1)) <= folded_at:
            folded_at = 0
        if heading and not folded_at and cell.metadata.get("jp-MarkdownHeadingCollapsed"):
            folded_at = len(heading.group(1))
        if not folded_at:
            kept.append(cell)
    return kept


def without_folds(text: str) -> str:
    """Return text without what stands in <details>, and without comments."""
    return re.sub(r"<details>.*?</details>|<!--.*?-->", "", text, flags=re.DOTALL)


def exercise_minutes(prose: str) -> int:
    """Return the minutes that the titles of the exercises name, together."""
    return sum(int(found) for found in re.findall(r"^### Exercise\b.*?(\d+) minutes", prose, re.MULTILINE))


def panel_tasks(prose: str) -> int:
    """Return how many things to try the panels have: items of lists below a line that ends in "to try:"."""
    tasks, listing = 0, False
    for line in prose.splitlines():
        if re.search(r"\bto try\b.*:$", line):
            listing = True
        elif listing and re.match(r"\d+\. ", line):
            tasks += 1
        elif line.strip() and not line.startswith(" "):
            listing = False
    return tasks


def opening(head: Head, before: Head | None) -> str:
    """Return the line below a lesson's title."""
    parts = f"{head.reading} of reading, {head.exercises} of exercises, {head.panels} at the panels"
    first = f"Before this: [{before.title}]({before.stem}.ipynb)." if before else "Nothing comes before this."
    return f"About {head.minutes} minutes: {parts}. {first}"


def closing(after: Head | None) -> str:
    """Return the line that leads on."""
    if after is None:
        return (
            "This is the last lesson that is written; [lesson 00](00-start-here.ipynb) names what is coming."
        )
    return f"Next: [{after.title}]({after.stem}.ipynb): {after.shows}."


def table(heads: list[Head], folder: str) -> str:
    """Return the table of the course, its links read from a page that `folder` leads on from."""
    rows = [f"| [{h.title}]({folder}{h.stem}.ipynb) | {h.shows} | {h.minutes} |" for h in heads]
    coming = [f"| {number} {title} | {shows} | coming |" for number, title, shows in COMING]
    return "\n".join(["| lesson | what you will see | minutes |", "|---|---|---|", *rows, *coming])


def replaced(text: str, name: str, content: str) -> str:
    """Return text with what stands between the two comments of that name replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(
        pattern, lambda found: f"{found.group(1)}\n{content}\n\n{found.group(2)}", text, flags=re.DOTALL
    )


def pages() -> dict[Path, str]:
    """Return every page that holds a written part, with the text that it should have."""
    found = sources()
    heads = [head_of(path) for path in found]
    texts = {}
    for index, (path, head) in enumerate(zip(found, heads, strict=True)):
        text = path.read_text(encoding="utf-8")
        text = replaced(text, "head", opening(head, heads[index - 1] if index else None))
        text = replaced(text, "next", closing(heads[index + 1] if index + 1 < len(heads) else None))
        texts[path] = replaced(text, "course", table(heads, ""))
    readme = ROOT / "README.md"
    texts[readme] = replaced(readme.read_text(encoding="utf-8"), "course", table(heads, "notebooks/"))
    return texts


def write() -> list[Path]:
    """Write the pages that are out of date, and return them."""
    # Twice: the table of lesson 00 is a part of what its reader reads.
    changed = {}
    for _ in range(2):
        for path, text in pages().items():
            if path.read_text(encoding="utf-8") != text:
                write_atomically(path, text)
                changed[path] = None
    return list(changed)


if __name__ == "__main__":
    for path in write():
        print(f"written: {path.relative_to(LESSONS.parent)}")
