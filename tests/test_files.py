"""One spelling of what is not finite, and locks; kills in mid-write: finetune/train/test_checkpoint.py."""

import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest

from stabviz.files import as_number, dumps, loads, locked, write_atomically

HOLD = """
import sys, time
from stabviz.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_dumps_is_strict_json_with_one_spelling():
    text = dumps({"a": [math.nan, 1.5, "NaN"], "b": {"c": -math.inf, "d": None}})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [{"$float": "NaN"}, 1.5, "NaN"],
        "b": {"c": {"$float": "-Infinity"}, "d": None},
    }


def test_loads_reads_back_what_dumps_wrote():
    value = {"finite": -0.0, "high": math.inf, "text": "Infinity", "deep": [{"low": [-math.inf]}], "n": 2**70}
    assert loads(dumps(value)) == value
    assert math.isnan(loads(dumps(math.nan)))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, (2, 3)]}, r"scores\['a'\]\[1\]"),
        ({1: 2}, "scores"),
        ({"b": {"$float": "NaN"}}, r"scores\['b'\]"),
    ],
)
def test_dumps_refuses_what_json_would_change(value, place):
    with pytest.raises(ValueError, match=f"^{place} must be None, a bool"):
        dumps(value, "scores")


def test_spellings_of_earlier_versions_are_read():
    assert math.isnan(loads('{"std": NaN}')["std"])
    assert [as_number(text) for text in ("inf", "Infinity", "-Infinity")] == [math.inf, math.inf, -math.inf]
    assert math.isnan(as_number("NaN"))
    assert [as_number(value) for value in ("desk", 2, None, True, [1])] == ["desk", 2, None, True, [1]]


def test_write_atomically_leaves_the_scratch_file_of_a_living_writer_alone(tmp_path):
    mine, gone = (tmp_path / f".a.json.{pid}.1.writing" for pid in (os.getpid(), 2**22 + 1))
    mine.touch()
    gone.touch()
    write_atomically(tmp_path / "a.json", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "a.json"]


def test_locked_keeps_threads_apart(tmp_path):
    path, inside, seen = tmp_path / "count", [], []

    def work():
        with locked(path):
            inside.append(1)
            seen.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 7


def test_locked_waits_for_a_living_process_and_not_for_a_killed_one(tmp_path):
    path = tmp_path / "progress.json"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match=r"locked: another process has held .*progress\.json\.lock"):
            with locked(path, patience_s=0.2):
                pytest.fail("both hold it")
    finally:
        holder.kill()
        holder.communicate()
    with locked(path, patience_s=0.2):
        assert path.with_name("progress.json.lock").exists()
