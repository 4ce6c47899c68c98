"""The lesson builder: what it stores, and that it stores the same twice."""

import base64
import os
import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from lessons import build

LESSON = """---
kernelspec:
  display_name: Python 3
  name: python3
---

# 98 Planted

```{code-cell} ipython3
:tags: [nbval-ignore-output]

import os
from ipywidgets import HTML, IntSlider, VBox
picture = HTML()
VBox([IntSlider(), VBox([picture])])
```

```{code-cell} ipython3
picture.value = '<div><svg xmlns="http://www.w3.org/2000/svg" aria-label="drawn late"></svg></div>'
print("one")
print("two")
os.path.basename(os.getcwd())
```

```{code-cell} ipython3
os.environ["STABVIZ_HOME"]
```

```{code-cell} ipython3
os.environ["STABVIZ_HOME"]
```
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LESSONS", tmp_path / "lessons")
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("STABVIZ_HOME", os.environ["STABVIZ_HOME"])
    build.LESSONS.mkdir()
    build.NOTEBOOKS.mkdir()
    (build.LESSONS / "98-planted.md").write_text(LESSON)
    (build.LESSONS / "README.md").write_text("no lesson")
    return tmp_path


def built():
    build.main("98")
    return nbformat.read(build.NOTEBOOKS / "98-planted.ipynb", as_version=4)


def test_build_stores_outputs_pictures_and_no_widgets(folder):
    own_home = os.environ["STABVIZ_HOME"]
    notebook = built()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert "widgets" not in notebook.metadata
    assert all("execution" not in cell.metadata for cell in code)

    (shown,) = code[0].outputs
    assert set(shown["data"]) == {"text/plain", "text/html"}
    assert 'alt="drawn late"' in shown["data"]["text/html"]
    data = re.search(r"base64,([^\"]+)", shown["data"]["text/html"]).group(1)
    assert base64.b64decode(data).decode().startswith("<svg")

    assert [out.get("text") for out in code[1].outputs] == ["one\ntwo\n", None]
    assert code[1].outputs[1]["data"]["text/plain"] == "'notebooks'"
    assert own_home not in code[2].outputs[0]["data"]["text/plain"]
    assert len({cell.id for cell in notebook.cells}) == 5  # also of the two cells that are equal


def test_build_twice_stores_the_same(folder):
    (build.LESSONS / "98-planted.md").write_text(LESSON.replace('os.environ["STABVIZ_HOME"]', '"home"'))
    first = built()
    assert built() == first


def test_build_of_a_lesson_that_fails_keeps_the_notebook_that_was_there(folder):
    first = built()
    (build.LESSONS / "98-planted.md").write_text(LESSON.replace('print("one")', "1 / 0"))
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build.main("98")
    assert nbformat.read(build.NOTEBOOKS / "98-planted.ipynb", as_version=4) == first
    assert [path.name for path in build.NOTEBOOKS.iterdir()] == ["98-planted.ipynb"]


def test_build_takes_only_the_lesson_asked_for(folder):
    (build.LESSONS / "97-other.md").write_text(LESSON)
    built()
    assert [path.name for path in build.NOTEBOOKS.iterdir()] == ["98-planted.ipynb"]


def test_build_of_an_unknown_lesson_says_so(folder):
    with pytest.raises(SystemExit, match="LESSON must be the start of a file name in lessons/; got '77'"):
        build.main("77")
