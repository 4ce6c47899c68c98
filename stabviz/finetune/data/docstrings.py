"""Docstrings of the standard library, to be classified by package: natural text, nothing shipped."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stabviz.seeds import integer

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
"""Top-level packages with enough docstrings that every Python 3.11 to 3.14 has, also without Tk."""
MIN_WORDS = 5


def file_docstrings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name, docstring) of a source file's module, classes and functions, without importing it.

    Raises: SyntaxError or ValueError for a source that this Python cannot read
    """
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), getattr(node, "name", ""), text


def read_docstrings(path: Path) -> list[str]:
    """Return the longer docstrings of one source file, white space joined."""
    texts = (" ".join(text.split()) for _, _, text in file_docstrings(path))
    return [text for text in texts if len(text.split()) >= MIN_WORDS]


def docstring_modules(root: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """Return package -> module file -> docstrings; what occurs twice is kept once, tests are left out."""
    root = Path(root or sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    packages: dict[str, dict[str, list[str]]] = {}
    for package in PACKAGES:
        modules = {}
        for path in sorted((root / package).rglob("*.py")):
            texts = [text for text in dict.fromkeys(read_docstrings(path)) if text not in seen]
            seen.update(texts)
            if texts and "test" not in path.parts and "tests" not in path.parts:
                modules[path.relative_to(root).as_posix()] = texts
        if len(modules) >= 3:  # one for each split
            packages[package] = modules
    return packages


def split_docstrings(
    packages: dict[str, dict[str, list[str]]], *, validation_share: float, test_share: float, seed: int
) -> dict[str, list[dict[str, str]]]:
    """Divide whole modules among the splits, so that what one module says often is in one split alone.

    A package's largest module always trains. Of the others, in an order drawn by `seed`, test and then
    validation take those that fit into one and a half times their share, or the smallest: the shares are only
    about what was asked for.
    """
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    rng = np.random.default_rng(integer(seed, "modules"))
    for package, modules in packages.items():
        names = sorted(modules, key=lambda name: (len(modules[name]), name))
        total = sum(len(texts) for texts in modules.values())
        order = [names[i] for i in rng.permutation(len(names) - 1)]
        chosen = {names[-1]: "train"}
        for split, share, left in (("test", test_share, 1), ("validation", validation_share, 0)):
            free, taken = [name for name in order if name not in chosen], 0
            for name in free[left:]:
                if taken < share * total and taken + len(modules[name]) <= 1.5 * share * total:
                    chosen[name] = split
                    taken += len(modules[name])
            if not taken:
                chosen[min(free, key=lambda name: len(modules[name]))] = split
        for name in modules:
            rows[chosen.get(name, "train")] += [
                {"text": text, "label": package, "file": name} for text in modules[name]
            ]
    return rows
