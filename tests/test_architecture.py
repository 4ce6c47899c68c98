"""Imports between the rooms of stabviz run one way, down the list below."""

import ast
import sys
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
    "course": {"trace", "views"},
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


def test_every_room_stands_on_the_list():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms
    assert rooms <= set(MAY_IMPORT)


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
        ("def late():\n    from stabviz.ops import softmax", "stabviz.course"),
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
