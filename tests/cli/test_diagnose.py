"""diagnose as a user calls it: one run, several as a table, JSON, and in no time."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from stabviz.cli.main import main
from stabviz.trace import Trace, save

HEAVY = {"torch", "transformers", "matplotlib", "ipywidgets", "datasets"}


@pytest.fixture
def files(tmp_path):
    """A healthy run, one that becomes NaN, and one that is no record at all."""
    falling = 0.5 + 2 * np.exp(-np.arange(60) / 15)
    lost = np.where(np.arange(60) < 40, falling, np.nan)
    paths = [tmp_path / name for name in ("good.jsonl", "lost.jsonl", "notes.csv")]
    for path, loss in zip(paths, (falling, lost), strict=False):
        save(Trace(steps=range(60), signals={"loss_nats": [loss]}, runs=[{}]), path)
    paths[2].write_text("step,temperature\n0,1\n")
    return [str(path) for path in paths]


def test_diagnose_prints_outcome_cause_evidence_remedy_and_lesson(files, capsys):
    assert main(["diagnose", files[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{files[1]}: diverged at step 40, cause: hidden_nan (shown)"
    assert lines[1].startswith("  evidence: loss nan at step 40 without growth")
    assert lines[-2].startswith("  remedy (shown): Check loss and gradient norm")
    assert lines[-1] == "  lesson: 04-gradient-clipping"


def test_diagnose_of_several_is_a_table_that_names_what_it_could_not_read(files, capsys):
    assert main(["diagnose", *files]) == 2
    header, *rows = capsys.readouterr().out.splitlines()
    assert [row[header.index("found") :].split("  ")[0] for row in rows] == [
        "healthy",
        "diverged at step 40, cause: hidden_nan (shown)",
        "not read",
    ]
    assert "must have a loss" in rows[2]
    assert main(["diagnose", files[2]]) == 2
    assert "must have a loss" in capsys.readouterr().err


def test_diagnose_takes_a_folder_of_seeds_run_by_run(files, tmp_path, capsys):
    for seed in (0, 1):
        (tmp_path / "series" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "series" / f"seed-{seed}" / "log.csv").write_text("step,loss\n0,1\n")
    assert main(["diagnose", str(tmp_path / "series")]) == 0
    assert capsys.readouterr().out.count("too short") == 2


def test_diagnose_json_holds_each_run_and_each_refusal(files, capsys):
    assert main(["diagnose", "--json", *files]) == 2
    good, lost, notes = json.loads(capsys.readouterr().out)
    assert (good["verdict"], good["kind"], good["remedy"]) == ("healthy", "healthy", "")
    assert (lost["run"], lost["verdict"], lost["kind"], lost["step"]) == (
        files[1],
        "diverged",
        "hidden_nan",
        40,
    )
    assert set(notes) == {"run", "error"}


def test_diagnose_answers_in_under_a_second_and_imports_nothing_heavy(files):
    told = f"import sys; from stabviz.cli.main import main; main(['diagnose', {files[0]!r}]); "
    told += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"
    before = time.process_time()
    main(["diagnose", files[0]])
    assert time.process_time() - before < 1
