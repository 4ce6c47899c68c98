"""What a learner types first: the pins, the ranges, the Makefile and the README agree with one another."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from stabviz import ops
from stabviz.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = {
    requirement.name: requirement
    for text in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    for requirement in [Requirement(text)]
}
PINS = {
    requirement.name: requirement
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if (text := line.split("#")[0].strip())
    for requirement in [Requirement(text)]
}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


TRACKERS = {"wandb", "mlflow"}
"""Extras that nobody needs for the course or its tests, and that bring a hundred packages: not pinned."""


def test_what_is_pinned_and_what_is_required_are_the_same_packages():
    assert set(PINS) == set(RANGES) - TRACKERS


@pytest.mark.parametrize("name", sorted(PINS))
def test_each_pin_is_exact_and_within_its_range(name):
    (specifier,) = PINS[name].specifier
    assert specifier.operator == "=="
    assert "*" not in specifier.version
    assert specifier.version in RANGES[name].specifier


def test_python_range_admits_the_tested_python_and_refuses_3_10():
    assert "3.11" in SpecifierSet(PROJECT["requires-python"])
    assert "3.10" not in SpecifierSet(PROJECT["requires-python"])


def roots_imported_by(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0]


# Optional in stabviz: the doctor asks Jupyter's client, which comes with ipykernel, where it is there;
# TensorBoard's events are read where it is installed. IPython comes with ipywidgets, yaml with
# transformers, scipy with scikit-learn.
@pytest.mark.parametrize(
    ("folder", "declared", "comes_along"),
    [
        ("stabviz", PROJECT["dependencies"], {"jupyter_client", "IPython", "tensorboard", *TRACKERS}),
        ("lessons", list(RANGES), {"IPython"}),
        ("tests", list(RANGES), {"jupyter_client", "IPython", "yaml", "scipy", *TRACKERS}),
    ],
)
def test_whatever_is_imported_is_required(folder, declared, comes_along):
    roots = metadata.packages_distributions()
    distributions = {root: [canonicalize_name(name) for name in roots[root]] for root in roots}
    known = {*sys.stdlib_module_names, "stabviz", "lessons", "tests", *comes_along}
    imported = set(roots_imported_by(folder)) - known
    declared_names = {canonicalize_name(Requirement(text).name) for text in declared}
    undeclared = {root for root in imported if not declared_names & set(distributions.get(root, []))}
    assert undeclared == set()


def test_a_wheel_would_hold_every_file_of_the_package():
    """setuptools takes the .py files of folders with an __init__.py, and of the rest what is declared."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    declared = {path for p in settings["package-data"]["stabviz"] for path in (ROOT / "stabviz").glob(p)}
    files = {p for p in (ROOT / "stabviz").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    modules = {path for path in files if path.suffix == ".py" and (path.parent / "__init__.py").exists()}
    assert modules
    assert files - modules == declared
    assert {path.name for path in declared} >= {"py.typed", "report.html"}


PAGES = ["README.md", "CONTRIBUTING.md", ".github/workflows/test.yml"]
PATH = re.compile(r"(?<![\w/.*-])(?:stabviz|tests|lessons|notebooks|data|\.ci|\.github)/[\w./*-]*[\w*/]")


def named_files(page):
    """Yield each path that a page names, and the files that are there; NN and slug stand for any lesson's."""
    for path in sorted(set(PATH.findall((ROOT / page).read_text()))):
        yield path, list(ROOT.glob(path.rstrip("/").replace("NN", "[0-9][0-9]").replace("slug", "*")))


@pytest.mark.parametrize("page", PAGES)
def test_each_file_that_a_page_names_is_there(page):
    found = dict(named_files(page))
    assert len(found) >= 2
    assert [path for path, files in found.items() if not files] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_command_that_a_page_names_is_one(page):
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert "test" in targets
    assert targets <= TARGETS
    commands = {command.__name__.lower() for command in COMMANDS}
    assert set(re.findall(r"python -m stabviz ([a-z]+)", text)) <= commands
    modules = re.findall(r"python -m (tests[\w.]+)", text)
    assert all((ROOT / module.replace(".", "/")).with_suffix(".py").exists() for module in modules)


def test_the_readme_names_every_room():
    tree = re.search(
        r"^    files\.py .*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    ).group()
    rooms = {f"{path.parent.name}/" for path in (ROOT / "stabviz").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "stabviz").glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"^    (\w+(?:/|\.py))", tree, re.MULTILINE)) == rooms | files


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    query, key = torch.ones(2, 3, 5, 7), torch.ones(2, 3, 5, 7)
    space = {
        "query_BHLK": query,
        "key_BHMK": key,
        "value_BHMK": key,
        "param": torch.ones(5),
        "grad": torch.ones(5),
    }
    space["state"] = ops.adam_init(space["param"])
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile("\n".join(code), "README.md", "exec"), space)
    assert (tmp_path / "runs.parquet").exists()
    assert space["mine"].n_runs == 8
    assert space["seen"].entropy_H.shape == (3,)


def test_where_do_i_find_names_what_stands_in_the_file():
    """A row is: a concept, links to files, and names that one of the files defines or holds."""
    table = (ROOT / "README.md").read_text().split("## Where do I find")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12
    for concept, places, names in rows:
        paths = [ROOT / path for path in re.findall(r"\]\(([^)]+)\)", places)]
        assert paths, concept
        text = "".join(path.read_text() for path in paths if path.is_file())
        missing = [name for name in re.findall(r"`([^`]+)`", names) if not re.search(rf"\b{name}\b", text)]
        assert missing == [], f"{concept.strip()}: not in {places.strip()}"


def test_ci_on_other_machines_runs_the_readmes_commands_on_each_python_that_is_promised():
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert [system.split("-")[0] for system in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert {"3.11", "3.12", "3.13"} <= set(matrix["python"])
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in matrix["python"])
    ran = "\n".join(step.get("run", "") for step in job["steps"])
    assert "make test" in ran
    without_make = re.findall(
        r"^    (pip install .*|python -m pytest .*)$", (ROOT / "README.md").read_text(), re.M
    )
    without_make += re.findall(r"^    (python -m pytest .*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert len(without_make) == 3
    assert [command for command in without_make if command not in ran] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda path: path.stem
)
def test_an_issue_form_asks_for_something(path):
    form = yaml.safe_load(path.read_text())
    assert form.keys() >= {"name", "description", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_hooks_are_local_and_run_what_is_pinned():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    tools = {hook["entry"].split()[2] for hook in config["repos"][0]["hooks"]}
    assert tools == {"ruff", "pytest"}
    assert tools <= set(PINS)


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_quick_runs_a_part_of_what_test_runs():
    said = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "quick"], cwd=ROOT, capture_output=True, text=True
    )
    words = said.stdout.replace("\\\n", " ").split()
    assert {"check", "--check", ".venv/bin/mypy"} <= set(words)
    named = [
        word for word in words if word.startswith(("tests/", "notebooks/")) and not word.endswith(".cfg")
    ]
    assert len([word for word in named if word.startswith("notebooks/")]) == 2
    left_out = [word.partition("=")[2] for word in words if word.startswith("--ignore=")]
    assert [word for word in named + left_out if not (ROOT / word).exists()] == []


def test_ci_runs_make_test_and_is_valid_bash():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^(CI=true )?make test$", script.read_text(), re.MULTILINE)
    assert "pip install" not in script.read_text()  # what the tests need belongs into the pinned set
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.fixture
def clone(tmp_path):
    """A folder with what the set-up reads, and a `fake` that writes a Python which does as told."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def make(*arguments, python=None):
        if python is not None:
            (tmp_path / "python-fake").write_text(f"#!/bin/sh\n{python}\n")
            (tmp_path / "python-fake").chmod(0o755)
            arguments = (*arguments, f"PYTHON={tmp_path}/python-fake")
        outside_make = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        return subprocess.run(
            ["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env=outside_make
        )

    make.folder = tmp_path
    return make


def test_setup_without_a_python_new_enough_says_which_is_needed(clone):
    result = clone("setup", python="exit 1")
    assert result.returncode != 0
    assert "stabviz needs Python 3.11 or newer" in result.stdout
    assert not (clone.folder / ".venv").exists()


def test_setup_where_no_python_is_found_names_the_way_out(clone):
    result = clone("setup", "CANDIDATES=no-such-python")
    assert result.returncode != 0
    assert "make setup PYTHON=" in result.stdout


def test_setup_without_venv_names_the_package_to_install(clone):
    result = clone("setup", python='case "$*" in *ensurepip*) exit 1;; esac')
    assert result.returncode != 0
    assert "apt install python3-venv" in result.stdout


def test_setup_is_done_once_and_again_when_a_pin_changes(clone):
    (clone.folder / ".venv").mkdir()
    stamp = clone.folder / ".venv/.installed"
    stamp.touch()
    assert clone("-q", "setup").returncode == 0
    os.utime(stamp, (0, 0))
    assert clone("-q", "setup").returncode == 1


def test_what_a_learner_saves_in_a_notebook_is_not_written_into_its_lesson(tmp_path):
    """jupytext's server extension pairs files by folder; notebooks/jupytext.toml keeps it from doing so."""
    import jupytext
    import nbformat

    for name in ("jupytext.toml", "notebooks/jupytext.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    lesson = tmp_path / "lessons/00-a.md"
    lesson.parent.mkdir()
    kernel = {"kernelspec": {"display_name": "Python 3", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("ours = 1")], metadata=kernel)
    jupytext.write(notebook, lesson, fmt="md:myst")
    nbformat.write(notebook, tmp_path / "notebooks/00-a.ipynb")
    before = lesson.read_text()

    manager = jupytext.TextFileContentsManager()
    manager.root_dir = str(tmp_path)
    content = manager.get("notebooks/00-a.ipynb")["content"]
    content.cells[0].source = "learners = 2"
    manager.save({"type": "notebook", "format": "json", "content": content}, "notebooks/00-a.ipynb")

    assert "learners = 2" in (tmp_path / "notebooks/00-a.ipynb").read_text()
    assert lesson.read_text() == before
