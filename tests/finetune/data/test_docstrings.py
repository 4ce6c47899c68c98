"""Docstrings of the standard library: read without importing, whole modules in one split."""

import pytest

from stabviz.finetune.data.docstrings import (
    MIN_WORDS,
    PACKAGES,
    docstring_modules,
    read_docstrings,
    split_docstrings,
)


@pytest.fixture(scope="module")
def packages():
    return docstring_modules()


def test_read_docstrings_finds_those_of_module_class_and_function_without_running_them(tmp_path):
    path = tmp_path / "m.py"
    path.write_text('''"""Say what this module is for."""
raise SystemExit

class A:
    """Hold  a
    number of things."""
    async def f(self):
        """Return one of the things."""
    def g(self):
        """Short."""
''')
    assert read_docstrings(path) == [
        "Say what this module is for.",
        "Hold a number of things.",
        "Return one of the things.",
    ]


def test_docstring_modules_are_many_and_distinct(packages):
    texts = [text for modules in packages.values() for found in modules.values() for text in found]
    assert set(packages) <= set(PACKAGES)
    assert len(packages) >= 8
    assert len(texts) > 1500
    assert len(set(texts)) == len(texts)
    assert min(len(text.split()) for text in texts) >= MIN_WORDS


@pytest.mark.parametrize("seed", range(4))
def test_split_docstrings_no_module_serves_two_splits(packages, seed):
    rows = split_docstrings(packages, validation_share=0.1, test_share=0.1, seed=seed)
    files = {split: {row["file"] for row in part} for split, part in rows.items()}
    assert not files["train"] & files["validation"]
    assert not files["train"] & files["test"]
    assert not files["validation"] & files["test"]
    total = sum(map(len, rows.values()))
    assert total == sum(len(texts) for modules in packages.values() for texts in modules.values())
    for split in ("validation", "test"):
        assert {row["label"] for row in rows[split]} == set(packages)
        assert 0.05 < len(rows[split]) / total < 0.2


def test_split_docstrings_depends_on_the_seed(packages):
    shares = {"validation_share": 0.1, "test_share": 0.1}
    one, two, again = (split_docstrings(packages, seed=seed, **shares) for seed in (0, 1, 0))
    assert one == again
    assert one["test"] != two["test"]


def test_docstring_modules_a_library_without_sources_has_none(tmp_path):
    assert docstring_modules(tmp_path) == {}
