"""Each test of the course has an empty store."""

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STABVIZ_HOME", str(tmp_path / "store"))
    return tmp_path / "store"
