"""The command line, in-process and as a learner types it."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from stabviz.cli.lab import Lab, table
from stabviz.cli.main import main
from stabviz.course import progress
from stabviz.course.doctor import Finding
from stabviz.lab import Run
from stabviz.trace import Trace, load

OWN = {"seeds", "device", "every", "out"}


def small(folder, *more):
    size = ["--width", "8", "--heads", "2", "--layers", "1", "--context", "7", "--batch", "2"]
    return ["lab", "--steps", "13", "--seeds", "3", *size, "--out", str(folder), *more]


def test_module_runs_and_names_its_commands():
    result = subprocess.run([sys.executable, "-m", "stabviz", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("doctor", "progress", "lab"))


def test_each_knob_of_the_command_line_is_a_knob_of_the_lab():
    ours = {field.name for field in fields(Lab)} - OWN
    assert ours <= {field.name for field in fields(Run)}


def test_knobs_that_are_left_out_are_left_to_the_lab():
    assert Lab(steps=7, seeds=2).knobs() == {"task": "text", "steps": 7, "seed": [0, 1]}


def test_knobs_with_several_values_make_a_grid_and_single_ones_do_not():
    knobs = Lab(lr=(1e-3, 1e-2), norm=("post",), seeds=1).knobs()
    assert knobs["lr"] == [1e-3, 1e-2]
    assert knobs["norm"] == "post"


def test_lab_trains_the_grid_and_keeps_trace_and_picture(tmp_path, capsys):
    folder = tmp_path / "not" / "yet"
    assert main(small(folder, "--lr", "1e-3", "1e-2")) == 0
    kept = load(folder / "trace.parquet")
    assert kept.n_runs == 2 * 3
    assert kept.steps[-1] == 12
    np.testing.assert_array_equal(kept["loss_nats"], load(folder / "trace.jsonl")["loss_nats"])
    picture = (folder / "training.svg").read_text()
    assert "<svg" in picture
    assert 'aria-label="Loss and gradient norm of 6 runs over 13 steps"' in picture
    assert picture.count('data-gid="curve-loss_nats-lr=') == 2
    assert picture.count('data-gid="curve-grad_norm_preclip-lr=') == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["lr", "seed"]
    assert len(lines) == 1 + 2 * 3 + 1 + 1
    assert lines[-2].startswith("Not seen by the verdicts: ")
    assert str(folder) in lines[-1]


def test_lab_shows_progress_beside_the_table_and_not_in_it(tmp_path, capsys):
    main(small(tmp_path, "--every", "5"))
    printed = capsys.readouterr()
    assert "step 13 of 13, 0 of 3 runs non-finite" in printed.err
    assert "\r" not in printed.out


def test_lab_says_which_run_diverged_and_where(tmp_path, capsys):
    assert main(small(tmp_path, "--lr", "1e-3", "--init-scale", "1", "1e30")) == 0
    printed = capsys.readouterr()
    assert "3 of 6 runs non-finite" in printed.err
    exploded = [row for row in printed.out.splitlines() if row.split()[0] == "1e+30"]
    assert len(exploded) == 3
    assert all("diverged at 0" in row for row in exploded)


def test_lab_stopped_by_ctrl_c_keeps_what_was_trained(tmp_path, capsys, monkeypatch):
    import stabviz.lab

    stream = stabviz.lab.stream

    def interrupted(experiment, **options):
        yield next(iter(stream(experiment, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(stabviz.lab, "stream", interrupted)
    assert main(small(tmp_path, "--every", "5")) == 130
    assert load(tmp_path / "trace.parquet").n_steps == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--task", "sonnets"], "task must be one of"),
        (["--lr", "-1"], "lr must be"),
        (["--seeds", "0"], "must hold a value"),
        (["--every", "0"], "every must be at least 1"),
    ],
)
def test_lab_says_what_the_caller_got_wrong_in_one_line(tmp_path, capsys, arguments, text):
    assert main(small(tmp_path, *arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert len(error.splitlines()) == 1


def test_lab_without_the_device_asked_for_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(small(tmp_path, "--device", "cuda")) == 2
    assert "Try device='cpu'" in capsys.readouterr().err


def test_lab_with_a_file_in_the_way_of_its_folder_trains_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("stabviz.lab.stream", None)
    assert main(small(tmp_path / "file")) == 2
    assert "file" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("stabviz.lab.stream", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        main(small(tmp_path))


def test_table_aligns_its_columns():
    trace = Trace(
        config={"chance_nats": 4.0, "floor_nats": 1.0},
        steps=np.arange(31),
        signals={"loss_nats": np.stack([np.linspace(4, 1.5, 31), np.full(31, 4.0)])},
        runs=[{"lr": 0.01, "seed": 0}, {"lr": 1e-05, "seed": 11}],
    )
    header, first, second, unseen = table(trace).splitlines()
    assert first.index("healthy") == second.index("stalled") == header.index("verdict")
    assert "the gradient, whose norm was not logged" in unseen


@pytest.mark.parametrize(("level", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_exits_with_1_only_where_something_fails(monkeypatch, capsys, level, status):
    findings = [Finding(level=level, subject="device", text="planted")]
    monkeypatch.setattr("stabviz.course.doctor.examine", lambda: findings)
    assert main(["doctor"]) == status
    assert "planted" in capsys.readouterr().out


def test_progress_looks_where_the_notebooks_keep_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABVIZ_HOME", str(Path("notebooks") / ".stabviz"))
    progress.record("exercises", "07-planted", done=True)
    monkeypatch.delenv("STABVIZ_HOME")
    assert main(["progress"]) == 0
    assert "07-planted" in capsys.readouterr().out
    assert os.environ.pop("STABVIZ_HOME")  # set by main; monkeypatch puts the tests' own back


def test_resume_hands_its_flags_to_a_pretraining_run_too(monkeypatch, tmp_path):
    from stabviz.cli import train
    from stabviz.files import dumps
    from stabviz.finetune.pretrain.config import PretrainConfig

    started = PretrainConfig.of(steps=5, stop_after=2, warmup_steps=1)
    (tmp_path / "pretrain.json").write_text(dumps(started.as_dict()), encoding="utf-8")
    resumed = []
    monkeypatch.setattr(train, "_pretrained", lambda config, **how: resumed.append((config, how)) or 0)
    assert main(["resume", str(tmp_path), "--steps", "7", "--workers", "1", "--force"]) == 0
    expected = started.replace(out=tmp_path, steps=7, workers=1, stop_after=None)
    assert resumed == [(expected, {"resume": True, "force": True})]
