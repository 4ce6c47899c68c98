"""The table is right, on planted times; nothing here is timed."""

import json

import pytest

from tests.bench import run, table
from tests.bench.table import Row, markdown, row_of, side_by_side, slowdown, speedup


def test_slowdown_is_ours_over_theirs_of_the_lower_quartiles():
    ours, theirs = [3.0, 3.0, 3.0, 90.0, 3.0], [2.0, 2.0, 2.0, 2.0, 70.0]
    row = slowdown("op", ours, theirs, 1.4)
    assert row.ratio == pytest.approx(1.5)
    assert row.verdict == "missed"
    assert (row.ours, row.reference) == (3e3, 2e3)


def test_speedup_is_theirs_over_ours_and_must_reach_the_target():
    row = speedup("engine", [2.0] * 5, [10.0] * 5, 5.0)
    assert row.ratio == pytest.approx(5.0)
    assert row.verdict == "met"
    assert speedup("engine", [2.0] * 5, [9.9] * 5, 5.0).verdict == "missed"


def test_row_of_scales_ratio_and_spread_alike():
    row = row_of("x", [1.0, 2.0, 3.0], [1.0, 1.0, 1.0], ours=[1.0] * 3, reference=[1.0] * 3, scale=16.0)
    assert row.spread == (24.0, 40.0)
    assert row.ratio == 24.0


def test_side_by_side_takes_turns_and_counts_calls(monkeypatch):
    clock, turns = {"now": 0.0}, []
    monkeypatch.setattr(table.time, "perf_counter", lambda: clock["now"])

    def planted(name, seconds):
        def call():
            turns.append(name)
            clock["now"] += seconds

        return call

    seconds = side_by_side({"a": planted("a", 2.0), "b": planted("b", 5.0)}, rounds=3, calls=2)
    assert seconds == {"a": [2.0] * 3, "b": [5.0] * 3}
    assert turns[6:] == ["a", "a", "b", "b"] * 3


def test_markdown_shows_verdicts_targets_and_why_a_row_did_not_run():
    rows = [speedup("engine", [2.0] * 3, [10.0] * 3, 5.0), Row(what="panel", target=0.3, note="no browser")]
    lines = markdown(rows, {"device": "cpu"}).splitlines()
    assert lines[2].split("|")[1].strip() == "engine"
    assert [cell.strip() for cell in lines[2].split("|")[5:9]] == ["5", "5..5", ">= 5", "met"]
    assert [cell.strip() for cell in lines[3].split("|")[7:10]] == ["<= 0.3", "not run", "no browser"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == "- device: cpu"


def test_collect_goes_on_after_a_failure_and_names_what_was_skipped():
    def broken():
        yield Row(what="first", ratio=1.0)
        raise OSError("no memory")

    rows = run.collect(
        {"one": broken, "two": lambda: [Row(what="second", ratio=2.0)], "three": broken}, ["three"]
    )
    assert [row.what for row in rows] == ["first", "one", "second", "three"]
    assert rows[1].note == "failed: OSError: no memory"
    assert rows[3].note == "skipped by --skip"


def test_store_writes_both_files_with_the_machine(tmp_path):
    run.store([slowdown("op", [1.0] * 3, [2.0] * 3, 1.0)], table.device(), tmp_path)
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored["rows"][0]["verdict"] == "met"
    assert {"device", "processor", "cores", "torch", "date"} <= stored["machine"].keys()
    assert "| op " in (tmp_path / "bench.md").read_text()
