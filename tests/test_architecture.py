"""Imports run one way, down the list of rooms below, and never in a circle, inside a room either."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stabviz"
BOTTOM = {"files", "seeds"}
"""Modules that every room may import, and that import nothing of ours."""
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops"},
    "trace": set(),
    "scores": set(),
    "lab": {"ops", "models", "trace"},
    "methods": {"ops", "models"},
    "finetune": {"ops", "models", "trace", "scores", "methods"},
    "views": {"trace"},
    "course": {"trace", "views", "ops"},
    "cli": {"ops", "models", "trace", "scores", "lab", "methods", "finetune", "views", "course"},
}
MODULES = sorted(path for room in MAY_IMPORT for path in (PACKAGE / room).rglob("*.py"))
MODULES += [PACKAGE / f"{name}.py" for name in sorted(BOTTOM)]


def imported_names(source, package):
    """Yield every absolute dotted name that a module of `package` imports, relative imports resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_imports(source, package):
    """Return the names that `package` ("stabviz.lab", "stabviz" itself) may not import."""
    room = package.partition(".")[2].split(".")[0]
    allowed = MAY_IMPORT[room] | {room} | BOTTOM if room else set()
    ours = [name for name in imported_names(source, package) if name.split(".")[0] == "stabviz"]
    # "import stabviz" alone would hand a room everything above it.
    return [name for name in ours if name.count(".") == 0 or name.split(".")[1] not in allowed]


def package_of(path):
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def circle(sources):
    """Return the modules of one circle of imports among {path: source}, [] if there is none.

    Imports inside of functions count: they only hide a circle. What is loaded by a name in a text does not
    (course/checks and finetune.__getattr__): those register themselves with, or are handed out by, the module
    above them.
    """
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph = {}
    for name, path in modules.items():
        imported = imported_names(sources[path], path.rpartition("/")[0].replace("/", "."))
        # "from a.b import c" imports the module a.b.c where there is one, else the name c of module a.b.
        nearest = (word if word in modules else word.rpartition(".")[0] for word in imported)
        graph[name] = {word for word in nearest if word in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_stands_on_the_list():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms
    assert rooms <= set(MAY_IMPORT)


def test_no_import_runs_in_a_circle():
    sources = {
        path.relative_to(PACKAGE.parent).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    assert len(sources) > 80
    assert circle(sources) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"a/one.py": "from a.two import x", "a/two.py": "import a.one"},
        {"a/one.py": "from . import two", "a/two.py": "def late():\n    from .one import x"},
        {
            "a/__init__.py": "from a.one import x",
            "a/one.py": "from a.b.two import y",
            "a/b/two.py": "import a",
        },
        {"a/__init__.py": "from a.one import x", "a/one.py": "from a import y"},
    ],
)
def test_a_circle_is_caught(sources):
    assert len(circle(sources)) > 2


def test_a_diamond_and_a_package_that_hands_out_its_modules_are_no_circle():
    sources = {"a/top.py": "from a import left, right", "a/left.py": "import a.low", "a/low.py": "import sys"}
    sources |= {
        "a/right.py": "from .low import x",
        "a/__init__.py": "from a.top import x\nfrom a.low import y",
    }
    assert circle(sources) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    assert forbidden_imports(path.read_text(), package_of(path)) == []


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from stabviz.lab import grid", "stabviz.ops"),
        ("from stabviz import lab", "stabviz.trace"),
        ("import stabviz.views.plots as plots", "stabviz.lab"),
        ("import stabviz", "stabviz.ops"),
        ("from ..lab.engine import train", "stabviz.views"),
        ("from .. import course", "stabviz.views"),
        ("from ... import course", "stabviz.views.deeper"),
        ("from stabviz.trace import Trace", "stabviz"),
        ("def late():\n    from stabviz.ops import softmax", "stabviz.views"),
    ],
)
def test_an_arrow_that_goes_up_is_caught(source, package):
    assert len(forbidden_imports(source, package)) == 1


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from stabviz.ops import softmax", "stabviz.lab"),
        ("from .plots import plot_loss_fan", "stabviz.views"),
        ("from . import plots", "stabviz.views"),
        ("from ..trace import Trace", "stabviz.views"),
        ("import torch, stabvizard", "stabviz.ops"),
        ("from stabviz.files import locked", "stabviz.ops"),
    ],
)
def test_an_arrow_that_goes_down_passes(source, package):
    assert forbidden_imports(source, package) == []


def test_ops_is_from_scratch_on_torch_alone():
    imported = {
        name.split(".")[0]
        for path in (PACKAGE / "ops").rglob("*.py")
        for name in imported_names(path.read_text(), package_of(path))
    }
    assert imported - set(sys.stdlib_module_names) <= {"torch", "stabviz"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pyplot_and_its_global_state_are_used_nowhere(path):
    names = imported_names(path.read_text(), package_of(path))
    assert not [name for name in names if name.startswith("matplotlib.pyplot")]
