"""Write and execute notebooks/NN-slug.ipynb from lessons/NN-slug.md: `make lessons` (LESSON=03 for one).

What is stored depends on the lesson and not on the day: cell ids come from the sources, times and widget
states are left out, and the learner's own store is replaced by an empty one.
"""

import base64
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from stabviz.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ROOT / "lessons"
NOTEBOOKS = ROOT / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
SECONDS_ALLOWED = 45  # of machine time for one lesson, on two cores


def sources(prefix=""):
    """Return the lessons whose file name starts with `prefix`, in the order of the course."""
    return sorted(path for path in LESSONS.glob("[0-9]*.md") if path.name.startswith(prefix))


def notebook_path(lesson_path):
    """Return where the notebook of a lesson stands."""
    return NOTEBOOKS / f"{lesson_path.stem}.ipynb"


def read_lesson(lesson_path):
    """Return a lesson as a notebook without outputs, with ids and metadata that are the same every time."""
    notebook = jupytext.read(lesson_path, fmt="md:myst")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    seen = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def execute(notebook):
    """Run every cell in a fresh kernel whose folder is notebooks/; a failing cell raises."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["STABVIZ_HOME"] = home
        NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=300,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
        ).execute()


def freeze_widgets(notebook):
    """Replace each live widget by the pictures it showed last: without a kernel it would show nothing."""
    state = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(WIDGET_VIEW, None)
            if view is not None:
                pictures = list(svgs_below(state, view["model_id"]))
                if re.match(r"\w+\(", output["data"].get("text/plain", "Widget()")):  # a repr: VBox(...
                    output["data"]["text/plain"] = "A widget: run this cell to use it."
                if pictures:
                    output["data"]["text/html"] = "\n".join(map(as_image, pictures))
    notebook.metadata["language_info"] = {"name": "python"}


def as_image(svg):
    """Return an SVG as an <img>: JupyterLab shows no bare SVG of a notebook that it does not trust yet."""
    label = re.search(r'aria-label="([^"]*)"', svg)
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{label.group(1) if label else ""}" src="data:image/svg+xml;base64,{data}">'


def svgs_below(state, model_id):
    """Yield the SVG held by a widget and, in order, by its children."""
    model = state.get(model_id, {}).get("state", {})
    if "<svg" in str(model.get("value", "")):
        yield re.search(r"<svg.*</svg>", model["value"], re.DOTALL).group()
    for child in model.get("children") or []:
        yield from svgs_below(state, child.removeprefix("IPY_MODEL_"))


def build(lesson_path):
    """Write one executed notebook and return the seconds that it took."""
    notebook = read_lesson(lesson_path)
    started = time.perf_counter()
    execute(notebook)
    seconds = time.perf_counter() - started
    freeze_widgets(notebook)
    nbformat.validate(notebook)
    # atomically: a build that is stopped leaves the old notebook whole
    write_atomically(notebook_path(lesson_path), lambda scratch: nbformat.write(notebook, scratch))
    return seconds


def main(prefix=""):
    found = sources(prefix)
    if not found:
        sys.exit(f"lessons: LESSON must be the start of a file name in lessons/; got {prefix!r}")
    for lesson_path in found:
        seconds = build(lesson_path)
        late = f" (a lesson may take {SECONDS_ALLOWED} s)" if seconds > SECONDS_ALLOWED else ""
        print(f"{lesson_path.stem}: {seconds:.0f} s{late}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
