"""`make claims`: what a trial sees, what the table says, and that a failing claim hides none after it."""

import json
import math

import pytest

from lessons import claims
from lessons.claims import Row, Trial, in_turn, markdown, rows_of, run_apart, smallest_margin, store, trials

LESSON = """---
kernelspec:
  display_name: Python 3
  name: python3
---

# 97 Planted

```{code-cell} ipython3
import os
import torch
from stabviz.course import above, claim
from stabviz.seeds import generator
from stabviz.views import panel

drawn = torch.rand((), generator=generator(0, "trial")).item()
claim("it fails", above(1.0, 2.0), measured=1.0)
claim("it holds", above(drawn, -1.0), measured=drawn)
```

```{code-cell} ipython3
panel(print, [])
claim("the kernels", True, measured=torch.backends.cpu.get_cpu_capability())
claim("the threads", True, measured=torch.get_num_threads())
```
"""


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "KEPT", tmp_path / "kept")
    path = tmp_path / "97-planted.md"
    path.write_text(LESSON)
    return path


def test_a_trial_runs_a_lesson_with_its_seeds_kernels_and_threads(lesson):
    usual = run_apart(lesson, Trial(kernels="default", threads=2))
    assert [each["held"] for each in usual["claims"]] == [False, True, True, True]
    assert usual["whole"]
    assert [each["measured"] for each in usual["claims"]][2:] == ["DEFAULT", "2"]
    fresh = run_apart(lesson, Trial(offset=1000))
    assert fresh["claims"][1]["measured"] != usual["claims"][1]["measured"]
    # What was tried is kept until the code changes.
    lesson.write_text(LESSON.replace("it holds", "it held"))
    assert run_apart(lesson, Trial(offset=1000))["claims"][1]["claim"] == "it held"
    lesson.write_text(LESSON + "\n```{code-cell} ipython3\n1 / 0\n```\n")
    stopped = run_apart(lesson, Trial(offset=1000))
    assert not stopped["whole"]
    assert "ZeroDivisionError" in stopped["last words"]


def trial_result(*held, margin=1.0):
    lines = [{"claim": f"c{n}", "held": h, "margins": [margin], "measured": ""} for n, h in enumerate(held)]
    return {"claims": lines, "whole": True, "seconds": 10.0}


def test_rows_count_seeds_and_kernels_apart_and_a_claim_never_reached_did_not_hold():
    results = {
        Trial(offset=1000): trial_result(True, True, margin=3.0),
        Trial(offset=2000): trial_result(True, margin=1.0),
        Trial(kernels="default"): trial_result(True, False),
    }
    first, second = rows_of("97-planted", results)
    assert (first.seeds_held, first.seeds_tried, first.kernels_held, first.kernels_tried) == (2, 2, 1, 1)
    assert first.holds
    assert first.margin == pytest.approx(1 / math.sqrt(2))
    assert (second.seeds_held, second.kernels_held) == (1, 0)
    assert not second.holds


@pytest.mark.parametrize(
    ("held", "kernels", "holds"), [(20, 6, True), (19, 6, True), (18, 6, False), (20, 5, False)]
)
def test_a_claim_must_hold_on_19_of_20_sets_of_seeds_and_on_every_kernel(held, kernels, holds):
    row = Row(
        lesson="97",
        claim="c",
        seeds_held=held,
        seeds_tried=20,
        kernels_held=kernels,
        kernels_tried=6,
        margin=None,
    )
    assert row.holds == holds


def test_smallest_margin_is_in_units_of_its_own_spread():
    assert smallest_margin([[1.0, 100.0], [2.0, 300.0], [3.0, 200.0]]) == pytest.approx(1.0)
    assert smallest_margin([[1.0], [-1.0], [3.0]]) == pytest.approx(-0.5)
    assert smallest_margin([[0.5], [0.5 + 1e-9], [0.5]]) is None
    assert smallest_margin([[], []]) is None
    assert smallest_margin([]) is None
    assert smallest_margin([[math.inf], [1.0], [2.0]]) == pytest.approx(1 / math.sqrt(0.5))


def test_trials_are_fresh_seeds_and_every_kernel_with_one_thread_and_two(monkeypatch):
    monkeypatch.setattr(claims, "kernels_here", lambda: ["default", "avx2"])
    found = trials(3)
    assert [trial.offset for trial in found] == [1000, 2000, 3000, 0, 0, 0, 0]
    assert [trial.name for trial in found[3:]] == ["default-1", "default-2", "avx2-1", "avx2-2"]


def test_store_keeps_the_rows_of_lessons_that_were_not_tried(tmp_path):
    one, other = (
        Row(
            lesson=name,
            claim=f"a | b of {name}",
            seeds_held=19,
            seeds_tried=20,
            kernels_held=6,
            kernels_tried=6,
            margin=m,
        )
        for name, m in (("01-a", 2.25), ("02-b", None))
    )
    store([one], {"01-a": 12.0}, tmp_path)
    store([other], {"02-b": 13.0}, tmp_path)
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert list(kept) == ["01-a", "02-b"]
    page = (tmp_path / "claims.md").read_text()
    assert page == markdown(kept)
    assert "| a \\| b of 01-a | 19 of 20 | 6 of 6 | 2.2 |" in page
    assert "| a \\| b of 02-b | 19 of 20 | 6 of 6 | - |" in page


def test_in_turn_is_the_same_lesson_for_one_commit(monkeypatch):
    found = claims.sources()
    assert in_turn(found) == in_turn(found)
    monkeypatch.setattr(claims.shutil, "which", lambda name: None)
    assert in_turn(found) in found
