"""The store: whole or not at all, never lost, shared by several kernels."""

import math
import os
import threading

import pytest

from stabviz.course import progress


def test_records_of_each_kind_are_kept_and_replaced_by_name(home):
    progress.record("predictions", "00-lr", answer="high")
    progress.record("predictions", "00-lr", answer="low")
    progress.record("exercises", "00-a", done=True)
    store = progress.load()
    assert store["predictions"]["00-lr"]["answer"] == "low"
    assert store["exercises"]["00-a"]["done"] is True
    assert sorted(path.name for path in home.iterdir()) == ["progress.json", "progress.json.lock"]


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        progress.record("grades", "a", value=1)


@pytest.mark.parametrize("damage", [b"{", b"", b"[1]", b'{"exercises": 3}', b"\xff\xfe\x00"])
def test_damaged_store_is_set_aside_named_and_not_lost(home, capsys, damage):
    home.mkdir()
    (home / "progress.json").write_bytes(damage)
    assert not any(progress.load().values())
    assert (home / "progress.damaged-1.json").read_bytes() == damage
    assert "progress.damaged-1.json" in capsys.readouterr().err
    progress.record("exercises", "00-a", done=True)
    (home / "progress.json").write_bytes(b"again")
    progress.load()
    assert (home / "progress.damaged-1.json").read_bytes() == damage
    assert (home / "progress.damaged-2.json").read_bytes() == b"again"


def test_a_crash_while_writing_keeps_the_old_store(home, monkeypatch):
    progress.record("exercises", "00-a", done=True)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        progress.record("exercises", "00-b", done=True)
    assert list(progress.load()["exercises"]) == ["00-a"]
    assert sorted(path.name for path in home.iterdir()) == ["progress.json", "progress.json.lock"]


def test_a_full_disk_is_told_and_stops_nothing(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in progress.try_to_record("exercises", "00-a", done=True)


def test_records_of_many_threads_are_all_kept():
    writers = [
        threading.Thread(target=progress.record, args=("exercises", f"00-{n}"), kwargs={"done": True})
        for n in range(13)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(progress.load()["exercises"]) == 13


def test_lock_file_that_a_killed_kernel_left_is_no_lock(home):
    home.mkdir()
    (home / "progress.json.lock").touch()
    progress.record("exercises", "00-a", done=True)
    assert progress.load()["exercises"]


def test_scores_that_are_not_finite_come_back(home):
    progress.record("claims", "a", measured=math.inf)
    assert progress.load()["claims"]["a"]["measured"] == math.inf
    text = (home / "progress.json").read_text()
    (home / "progress.json").write_text(
        text.replace('{"$float": "Infinity"}', "Infinity")
    )  # as it once stood
    assert progress.load()["claims"]["a"]["measured"] == math.inf


def test_report_says_what_was_done():
    assert "Nothing yet" in progress.report()
    progress.record("exercises", "00-a", done=True)
    progress.record("exercises", "00-b", done=False)
    progress.record("predictions", "00-lr", answer="low", measured="0.003")
    progress.record("quizzes", "00", right=2, asked=3, answers=[])
    progress.record("claims", "a", measured="1")
    text = progress.report()
    for words in (
        "1 solved of 2 tried",
        "✓ 00-a",
        "· 00-b",
        "00-lr: low (measured 0.003)",
        "2 of 3 right",
        "1 seen",
    ):
        assert words in text
