"""One way from a seed to anything random: a stream for each purpose, the same on every machine."""

import os
import subprocess
import sys

import pytest
import torch

from stabviz.seeds import generator, integer


@pytest.fixture(autouse=True)
def no_offset(monkeypatch):
    monkeypatch.delenv("STABVIZ_SEED_OFFSET", raising=False)


def draw(*key):
    return torch.rand(3, generator=generator(*key)).tolist()


def test_generator_is_a_function_of_seed_and_purpose():
    keys = [(0,), (1,), (0, "row"), (0, "row", 0, 1), (0, "row", 1, 0), (1, "row", 0, 0), (0, "row", "0", 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert draw(0, "row", 1, 0) == draw(0, "row", 1, 0)
    assert integer(3, "row", 7) == integer(torch.tensor(3), "row", torch.tensor(7)), "any whole number"


def test_integer_is_the_same_in_every_process():
    assert integer(0, "initial weights") == 7251058204851727424
    command = "from stabviz.seeds import integer; print(integer(5, 'data'))"
    said = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert int(said.stdout) == integer(5, "data")


def test_a_generator_leaves_the_others_alone():
    one = generator(0, "data")
    first = torch.rand(3, generator=one).tolist()
    torch.rand(11, generator=generator(0, "noise"))
    torch.rand(11)
    assert (
        first + torch.rand(2, generator=one).tolist()
        == torch.rand(5, generator=generator(0, "data")).tolist()
    )


def test_offset_is_added_to_every_seed(monkeypatch):
    later = draw(107, "data")
    monkeypatch.setenv("STABVIZ_SEED_OFFSET", "100")
    assert draw(7, "data") == later


@pytest.mark.parametrize("text", ["a few", "1.5"])
def test_offset_that_is_no_integer_is_one_clear_error(monkeypatch, text):
    monkeypatch.setenv("STABVIZ_SEED_OFFSET", text)
    with pytest.raises(ValueError, match=f"^STABVIZ_SEED_OFFSET must be an integer; got '{text}'"):
        generator(0, "data")
