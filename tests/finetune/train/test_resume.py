"""Promises 1, 2 and 12: a resumed run equals one that was not stopped, to the bit; the same seed, the same
bytes."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from stabviz.finetune.data.loader import Loader
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import prepare
from stabviz.finetune.train.checkpoint import newest_checkpoint
from stabviz.finetune.train.loop import train
from stabviz.trace.log import read_metrics

STEPS, PER_EPOCH = 32, 7


@pytest.fixture(scope="module")
def uninterrupted(go, config_of, everything, tmp_path_factory):
    """What the run leaves that nobody stopped."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    progress = go(config_of(out))
    assert (progress.updates, progress.finished) == (STEPS, "all steps")
    return everything(out)


def test_the_run_has_all_that_could_differ(go, config_of, tmp_path):
    """Each source of chance does change the curve: else an exact resume would show nothing about it."""
    changes = {
        "run": {},
        "dropout": {"dropout": 0.0},
        "words": {"word_dropout": 0.0},
        "order": {"seed": 1},
        "accumulation": {"micro_batch": 8},
        "average": {"ema_decay": 0.5},
    }
    curves = {}
    for name, change in changes.items():
        go(config_of(tmp_path / name, steps=3, warmup_steps=1, evaluate_every=3, **change))
        trace = read_metrics(tmp_path / name / "metrics.jsonl")
        curves[name] = [*trace["loss_nats"][0], trace["validation_loss_nats"][0, -1]]
    usual = curves.pop("run")
    assert {name for name, curve in curves.items() if curve != usual} == set(curves)


@pytest.mark.parametrize(
    ("stop_after", "workers"),
    [(1, 0), (1, 2), (10, 0), (10, 2), (PER_EPOCH, 0), (2 * PER_EPOCH, 2), (STEPS - 1, 0), (STEPS - 1, 2)],
)
def test_resume_at_any_step_equals_the_run_that_was_not_stopped(
    go, stop_after, workers, uninterrupted, config_of, tmp_path, assert_equal_to_the_bit
):
    first = config_of(tmp_path / "run", workers=workers, stop_after=stop_after)
    progress = go(first)
    assert (progress.updates, progress.finished) == (stop_after, "")
    assert go(first.replace(stop_after=None), resume=True).finished == "all steps"
    assert_equal_to_the_bit(tmp_path / "run", uninterrupted)


def test_resume_after_the_last_step_changes_nothing(
    go, uninterrupted, config_of, tmp_path, assert_equal_to_the_bit
):
    config = config_of(tmp_path / "run")
    go(config)
    progress = go(config, resume=True)
    assert (progress.updates, progress.attempts) == (STEPS, STEPS)
    assert_equal_to_the_bit(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("workers", [(0, 0, 0), (0, 2, 1)])
def test_resuming_twice_equals_once(go, workers, uninterrupted, config_of, tmp_path, assert_equal_to_the_bit):
    """32 = 10 + 7 + 15, in the second case with another number of workers each time."""
    config = config_of(tmp_path / "run")
    reached = []
    for part, count, resume in zip((10, 7, None), workers, (False, True, True), strict=True):
        reached.append(go(config.replace(stop_after=part, workers=count), resume=resume).updates)
    assert reached == [10, 17, 32]
    assert_equal_to_the_bit(tmp_path / "run", uninterrupted)


def test_resume_from_an_older_checkpoint_cuts_the_log_and_equals(
    go, uninterrupted, config_of, tmp_path, capsys, assert_equal_to_the_bit
):
    """The newest checkpoint is damaged: the one before it is taken, and the log goes back to where that
    was."""
    config = config_of(tmp_path / "run", stop_after=17)
    go(config)
    newest, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest.name == "step-00000017"
    damaged = newest / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    go(config.replace(stop_after=None), resume=True)
    assert str(damaged) in capsys.readouterr().out
    assert_equal_to_the_bit(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw"},
        {"bucket": False, "fixed_length": True},
        {"layer_decay": 0.8, "freeze": ("embeddings",), "ema_decay": 0.5},
    ],
)
def test_resume_equals_with_other_settings_as_well(
    go, settings, config_of, tmp_path, everything, assert_equal_to_the_bit
):
    go(config_of(tmp_path / "whole", steps=12, **settings))
    config = config_of(tmp_path / "parts", steps=12, **settings)
    go(config.replace(stop_after=8))
    go(config, resume=True)
    assert_equal_to_the_bit(tmp_path / "parts", everything(tmp_path / "whole"))


# Refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 1e-3}, "lr was 0.003, is 0.001"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"steps": 40}, "steps was 32, is 40"),
        ({"batch": 4}, "batch was 8, is 4"),
        ({"dropout": 0.0}, "dropout was 0.1, is 0.0"),
    ],
)
def test_resume_under_a_changed_config_is_refused_unless_forced(go, change, said, config_of, tmp_path):
    config = config_of(tmp_path / "run", stop_after=1)
    go(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=said) as caught:
        go(config.replace(micro_batch=2, **change), resume=True)
    assert "micro_batch was 3, is 2" in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert go(config.replace(**change), resume=True, force=True).updates == 2


def test_resume_with_what_does_not_touch_the_mathematics_is_not_refused(
    go, uninterrupted, config_of, tmp_path, everything, assert_equal_to_the_bit
):
    go(config_of(tmp_path / "run", stop_after=9))
    go(config_of(tmp_path / "run", keep=3, flush_every=7, workers=1), resume=True)
    found = everything(tmp_path / "run")
    assert found[1]["progress"].pop("scheduled") != uninterrupted[1]["progress"]["scheduled"]
    found[1]["progress"]["scheduled"] = uninterrupted[1]["progress"]["scheduled"]  # how many are kept
    assert_equal_to_the_bit(found, uninterrupted)


def test_resume_on_other_data_is_refused_unless_forced(go, desk, config_of, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in desk.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    config = config_of(tmp_path / "run", data=str(data), stop_after=1)
    go(config)
    text = (data / "train.jsonl").read_text(encoding="utf-8")
    (data / "train.jsonl").write_text(text.replace(" the ", " teh ", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="a resume must have the settings of the run; the data are others"):
        go(config, resume=True)
    assert go(config, resume=True, force=True).updates == 2


def test_resume_under_another_seed_offset_is_refused_unless_forced(go, config_of, tmp_path, monkeypatch):
    monkeypatch.delenv("STABVIZ_SEED_OFFSET", raising=False)
    config, path = config_of(tmp_path / "run", stop_after=1), tmp_path / "run" / "config.json"
    go(config)
    described = json.loads(path.read_text(encoding="utf-8"))
    assert described.pop("seed_offset") == 0
    path.write_text(json.dumps(described), encoding="utf-8")  # as older versions wrote it
    monkeypatch.setenv("STABVIZ_SEED_OFFSET", "100")
    with pytest.raises(ValueError, match="STABVIZ_SEED_OFFSET was 0, is 100"):
        go(config, resume=True)
    assert go(config, resume=True, force=True).updates == 2
    assert json.loads(path.read_text(encoding="utf-8"))["seed_offset"] == 100
    assert go(config, resume=True).updates == 3


def test_resume_of_nothing_says_so(go, config_of, tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume: config.json is missing"):
        go(config_of(tmp_path / "run"), resume=True)


# The same bytes

_PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.run import finetune
finetune(FinetuneConfig.load(sys.argv[1]))
"""


def test_two_processes_write_the_same_bytes(config_of, uninterrupted, tmp_path, assert_equal_to_the_bit):
    """In deterministic mode, each with its own hash seed and its own number of workers."""
    digests = []
    for name, workers in (("one", 0), ("two", 2)):
        config = config_of(tmp_path / name, workers=workers)
        (tmp_path / f"{name}.json").write_text(json.dumps(config.as_dict()))
        environment = {**os.environ, "PYTHONHASHSEED": str(workers + 1), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(tmp_path / f"{name}.json")],
            check=True,
            env=environment,
            timeout=300,
        )
        digests.append(hashlib.sha256((tmp_path / name / "metrics.jsonl").read_bytes()).hexdigest())
        assert_equal_to_the_bit(tmp_path / name, uninterrupted)
    assert digests[0] == digests[1]
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert scores[0] == scores[1]


# Rewinds


@pytest.mark.parametrize("stop_after", [21, 25])
def test_a_rewind_after_a_resume_goes_where_it_would_have_gone(
    stop_after, config_of, everything, tmp_path, assert_equal_to_the_bit
):
    """The checkpoint that a stop leaves is no place to rewind to: the run that was not stopped does not have
    it."""

    def trained(out, **settings):
        config = config_of(out, steps=30, save_every=10, lr=1e-3, max_rewinds=4)
        setup, _ = prepare(
            config.replace(**settings), read_splits(config.data, config.run.seed), ProcessGroup.join("cpu")
        )
        poisoned = torch.tensor(
            [
                row
                for position in (24, 25)
                for row in Loader(setup.rows, setup.collate, config, setup.processes).indices(position)
            ]
        )

        def objective(model, batch):
            loss, measured = setup.objective(model, batch)
            return loss + 50.0 * torch.isin(batch["rows"], poisoned).all(), measured

        return train(dataclasses.replace(setup, objective=objective), resume="stop_after" not in settings)

    assert trained(tmp_path / "whole", stop_after=None).finished
    events = read_metrics(tmp_path / "whole" / "metrics.jsonl").events
    assert [(e["kind"], e["step"]) for e in events] == [("spike", 24), ("spike", 25), ("rewind", 25)]
    assert events[-1]["to"] == "step-00000020"
    trained(tmp_path / "parts", stop_after=stop_after)
    trained(tmp_path / "parts")
    assert_equal_to_the_bit(tmp_path / "parts", everything(tmp_path / "whole"))
