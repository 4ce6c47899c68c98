"""Settings: nested parts with flat names, and what older versions wrote."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import pytest

from stabviz.finetune.config import KNOWN_ELSEWHERE, MAY_CHANGE, FinetuneConfig, ScheduleName, paths
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.ops import SCHEDULES

OF_AN_OLD_RUN = {
    "data": "tickets.csv", "data_config": None, "text": "message", "label": "topic", "tags": None,
    "validation_share": 0.2, "test_share": 0.1, "max_train_rows": None, "label_noise": 0.0,
    "bad_rows": "skip", "max_length": 64, "model": "minilm", "implementation": "stabviz",
    "from_scratch": False, "dropout": None, "freeze": ["embeddings"], "label_smoothing": 0.1,
    "word_dropout": 0.05, "steps": 40, "batch": 16, "micro_batch": 4, "lr": 0.002, "schedule": "cosine",
    "warmup_steps": None, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.98, "eps": 1e-08,
    "bias_correction": False, "weight_decay": 0.01, "layer_decay": 0.9, "clip_norm": "inf",
    "ema_decay": 0.0, "precision": "fp32", "loss_scale": 65536.0, "activation_checkpointing": False,
    "compile": False, "bucket": True, "fixed_length": False, "packing": False, "workers": 0,
    "device": "cpu", "parallel": "ddp", "deterministic": False, "evaluate_every": 20, "patience": None,
    "save_every": 10, "keep": 3, "flush_every": 10, "signals_every": 10, "tensorboard": False,
    "progress": True, "max_bad_steps": 10, "rewind": True, "spike_sigmas": 12.0, "spike_height": 3.0,
    "max_rewinds": 3, "seed": 7, "seeds": 1, "stop_after": None, "out": "runs/old", "overwrite": False,
}  # fmt: skip
"""All 62 settings as config.json of a run held them before they were nested; infinity was a text then."""


def test_the_settings_of_an_old_run_are_read_into_their_parts():
    config = FinetuneConfig.from_dict(json.loads(json.dumps(OF_AN_OLD_RUN)))
    assert (config.data.source, config.data.bad_rows, config.data.max_length) == ("tickets.csv", "skip", 64)
    assert (config.model.name, config.model.implementation) == ("minilm", "stabviz")
    assert (config.train.lr, config.train.clip_norm, config.train.warmup) == (0.002, math.inf, 4)
    assert config.train.optimizer.freeze == ("embeddings",)
    assert (config.train.optimizer.name, config.train.optimizer.bias_correction) == ("adamw", False)
    assert (config.train.compute.micro_batch, config.train.guard.spike_height) == (4, 3.0)
    assert (config.run.out, config.run.seed, config.run.keep) == (Path("runs/old"), 7, 3)
    here = {name: value for name, value in OF_AN_OLD_RUN.items() if name != "tensorboard"}
    assert config.as_dict() == FinetuneConfig().as_dict() | here | {"clip_norm": math.inf}
    assert FinetuneConfig.from_dict(OF_AN_OLD_RUN | {"tensorboard": True}).run.log == ("tensorboard",)
    assert FinetuneConfig.from_dict(config.as_dict()) == config


def test_flat_names_stand_for_every_field_once():
    def fields(part):
        return sum(
            fields(value) if dataclasses.is_dataclass(value) else 1
            for value in (getattr(part, field.name) for field in dataclasses.fields(part))
        )

    for config in (FinetuneConfig(), PretrainConfig()):
        assert len(paths(type(config))) == fields(config)


def test_sections_of_a_config_file_group_the_same_names(tmp_path):
    (tmp_path / "flat.toml").write_text('data = "docstrings"\nlr = 1e-4\nbeta2 = 0.98\nout = "there"\n')
    (tmp_path / "nested.toml").write_text(
        '[data]\ndata = "docstrings"\n[train]\nlr = 1e-4\n[train.optimizer]\nbeta2 = 0.98\n'
        '[run]\nout = "there"\n'
    )
    flat, nested = (FinetuneConfig.load(tmp_path / f"{name}.toml") for name in ("flat", "nested"))
    assert flat == nested == FinetuneConfig.of(data="docstrings", lr=1e-4, beta2=0.98, out="there")


def test_replace_checks_settings_that_belong_together_only_when_all_are_set():
    config = FinetuneConfig.of(steps=1000, warmup_steps=900, batch=64, micro_batch=64)
    small = config.replace(micro_batch=8, batch=8, warmup_steps=5, steps=50)
    assert (small.train.steps, small.train.warmup, small.train.compute.micro_batch) == (50, 5, 8)
    assert config.train.steps == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "FinetuneConfig: 'stepz' is no setting. Did you mean 'steps'"),
        ({"trian": {"lr": 1.0}}, "FinetuneConfig: 'trian' is no setting"),
        ({"steps": "many"}, "FinetuneConfig: a value has the wrong type"),
        ({"steps": 0}, "TrainConfig: steps must be at least 1; got 0"),
        ({"batch": 8, "micro_batch": 9}, "micro_batch must be at most batch = 8; got 9"),
        ({"warmup_steps": 2.5}, "warmup_steps must be a share below 1 or a whole number of steps; got 2.5"),
        ({"epochs": 0}, "epochs must be above 0, or left out; got 0"),
        ({"warmup_steps": 201}, "warmup_steps must be from 0 to steps = 200, or left out; got 201"),
        ({"schedule": "sawtooth"}, "schedule must be one of"),
        ({"label": "a", "tags": "b"}, "label must be left out when tags is given"),
        ({"label": "a", "regression": "b"}, "label must be left out when regression is given"),
        ({"multi_label": ["a"], "tags": "b"}, "multi_label must be left out when tags is given"),
        ({"text_pair": "a", "tags": "b"}, "text_pair must be left out when tags is given"),
        ({"regression": "a", "label_noise": 0.1}, "label_noise must be 0 for regression; got 0.1"),
        ({"multi_label": ["a"], "label_smoothing": 0.1}, "label_smoothing must be 0 for multi_label"),
        ({"regression": "a", "class_weights": "balanced"}, "class_weights must be left out for regression"),
        ({"split_train": "none"}, "split_train must be the name of a split; got 'none'"),
        (
            {"split_validation": "x", "split_test": "x"},
            "split_validation must be another split than the other",
        ),
        ({"log": ["tensorbord"]}, "log must be some of .*; got ..tensorbord"),
        ({"bias_correction": False}, "optimizer must be 'adamw' when bias_correction is off"),
        ({"packing": True}, "packing must be off for classes"),
        ({"eps": math.inf}, "eps must be at least 0 and finite; got inf"),
        ({"stop_after": 0}, "stop_after must be at least 1, or left out; got 0"),
    ],
)
def test_what_is_wrong_is_refused_with_the_name_of_the_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.from_dict(settings)


def test_warm_up_is_a_share_below_1_and_steps_from_there_on():
    lengths = {None: 30, 0: 0, 0.1: 30, 0.06: 18, 1: 1, 40.0: 40}
    assert {w: FinetuneConfig.of(steps=300, warmup_steps=w).train.warmup for w in lengths} == lengths


def test_pretraining_refuses_what_it_would_leave_unused():
    with pytest.raises(ValueError, match="seeds must be 1 for pretraining; got 2"):
        PretrainConfig.of(seeds=2)
    with pytest.raises(ValueError, match="packing must be off for pretraining"):
        PretrainConfig.of(packing=True)


def test_a_resume_may_change_where_a_run_is_kept_and_not_what_it_computes():
    assert {"out", "workers", "save_every", "log"} <= MAY_CHANGE
    assert not MAY_CHANGE & {"seed", "signals_every", "steps", "lr", "batch", "data"}


def test_schedules_that_can_be_named_are_those_of_ops():
    assert set(get_args(ScheduleName)) == set(SCHEDULES)


def test_a_yaml_file_and_a_config_of_a_run_are_read_as_json_is(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nsteps: 20\nfreeze: [embeddings]\ntrain:\n  batch: 8\n")
    config = FinetuneConfig.load(tmp_path / "c.yaml")
    assert (config.train.lr, config.train.steps, config.train.batch) == (1e-3, 20, 8)
    assert config.train.optimizer.freeze == ("embeddings",)
    started = config.replace(stop_after=3, seed=4)
    (tmp_path / "config.json").write_text(
        json.dumps({"config": started.as_dict(), "data_fingerprint": "x", "torch": "2"})
    )
    assert FinetuneConfig.load(tmp_path / "config.json") == started.replace(stop_after=None)
    (tmp_path / "c.yml").write_text("lr: [1")
    with pytest.raises(ValueError, match=r"c.yml must be JSON, TOML or YAML \(while parsing") as caught:
        FinetuneConfig.load(tmp_path / "c.yml")
    assert "\n" not in str(caught.value)


def test_what_others_call_a_setting_is_suggested():
    for theirs, ours in (("learning_rate", "lr"), ("output_dir", "out"), ("eval_steps", "evaluate_every")):
        with pytest.raises(ValueError, match=f"{theirs!r} is no setting. Did you mean {ours!r}"):
            FinetuneConfig.of(**{theirs: 1})
    assert not set(KNOWN_ELSEWHERE) & set(paths(FinetuneConfig))
