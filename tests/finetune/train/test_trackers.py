"""Trackers are told what the log is told: a recording one for the interface, real ones where installed."""

import json
import math
import struct
import sys

import numpy as np
import pytest

from stabviz.finetune.train import trackers
from stabviz.trace.log import read_metrics

TOLD = {}


class Recording:
    """Keeps what it is told, by folder."""

    def __init__(self, folder, config, first_step):
        self.told = TOLD.setdefault(folder, [])
        self.told.append(("start", first_step, dict(config)))

    def values(self, step, values):
        self.told.append(("values", step, dict(values)))

    def event(self, step, text):
        self.told.append(("event", step, text))

    def flush(self):
        self.told.append(("flush",))

    def close(self):
        self.told.append(("close",))


@pytest.fixture
def recorded(monkeypatch, config_of, tmp_path):
    """Put the recording tracker in MLflow's place; return a config that names it."""
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", (Recording, "json"))
    TOLD.clear()
    return config_of(tmp_path / "run", log=("mlflow",), steps=8, save_every=0)


def numbers(told):
    return [(step, name, value) for kind, step, values in told for name, value in values.items()]


def test_a_tracker_is_told_every_number_of_the_log_once(recorded, go):
    go(recorded)
    told = TOLD[recorded.run.out]
    assert told[0][:2] == ("start", None)
    assert told[0][2]["lr"] == recorded.train.lr
    assert "out" not in told[0][2]
    assert [one[0] for one in told[-2:]] == ["flush", "close"] or told[-1][0] == "close"
    trace = read_metrics(recorded.run.out / "metrics.jsonl")
    seen = {}
    for step, name, value in numbers([one for one in told if one[0] == "values"]):
        assert (step, name) not in seen
        seen[step, name] = value
    for (step, name), value in seen.items():
        np.testing.assert_equal(value, trace[name][0, step])
    assert len(seen) == sum(np.isfinite(trace[name]).sum() for name in trace.signals)
    assert any(name == "validation_score" for _, name in seen)


def test_a_resume_tells_where_it_goes_on(recorded, go):
    go(recorded.replace(stop_after=5))
    go(recorded, resume=True)
    starts = [one for one in TOLD[recorded.run.out] if one[0] == "start"]
    assert [one[1] for one in starts] == [None, 5]
    steps = [one[1] for one in TOLD[recorded.run.out] if one[0] == "values"]
    assert sorted(set(steps)) == list(range(8))


def test_events_and_what_is_not_finite_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", (Recording, "json"))
    TOLD.clear()
    log = trackers.TrackedLog(tmp_path / "metrics.jsonl", {}, ["mlflow"])
    log.step(0, {"loss_nats": math.inf, "lr": None})
    log.event(0, "non_finite", rows=[3])
    log.close()
    _, values, event, *_ = [one for one in TOLD[tmp_path] if one[0] != "flush"]
    assert values[2]["loss_nats"] == math.inf
    assert math.isnan(values[2]["lr"])
    assert event == ("event", 0, "non_finite {'rows': [3]}")


@pytest.mark.parametrize("fails", ["values", "flush", "close"])
def test_a_tracker_that_fails_is_dropped_and_the_run_is_the_same(fails, recorded, go, monkeypatch, capsys):
    plain = recorded.replace(log=(), out=recorded.run.out.parent / "plain")
    go(plain)

    def fail(*told):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(Recording, fails, fail)
    assert go(recorded).finished == "all steps"
    said = capsys.readouterr()
    assert (said.out + said.err).count("log: mlflow failed and is told nothing more") == 1
    log = "metrics.jsonl"
    assert (recorded.run.out / log).read_bytes() == (plain.run.out / log).read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_is_not_installed_is_said_before_an_old_run_is_cleared(
    name, config_of, go, tmp_path, monkeypatch
):
    config = config_of(tmp_path / "run", steps=1, warmup_steps=0)
    go(config)
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name][1], None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        go(config.replace(log=(name,), overwrite=True))
    assert (config.run.out / "metrics.jsonl").exists()


def assert_holds_the_trace(
    history, trace, names=("loss_nats", "grad_norm_preclip/layer0", "validation_score")
):
    """history(name) -> {step: value} holds each measured value of the Trace once."""
    for name in names:
        measured = np.flatnonzero(np.isfinite(trace[name][0]))
        expected = {int(trace.steps[at]): trace[name][0, at] for at in measured}
        assert history(name) == pytest.approx(expected)


def test_mlflow_holds_the_run_once_also_after_a_resume(config_of, go, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="an optional extra: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)
    config = config_of(tmp_path / "run", log=("mlflow",), steps=8, save_every=0)
    go(config.replace(stop_after=5))
    # killed after the save: steps that the server has and the checkpoint has not
    go(config, resume=True)
    client = mlflow.MlflowClient()
    run = client.get_run((config.run.out / "mlflow.id").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.003"

    def history(name):
        found = client.get_metric_history(run.info.run_id, name)
        assert len({metric.step for metric in found}) == len(found)
        return {metric.step: metric.value for metric in found}

    assert_holds_the_trace(history, read_metrics(config.run.out / "metrics.jsonl"))


def test_mlflow_takes_no_number_twice_when_a_resume_goes_back(config_of, go, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="an optional extra: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)
    first = trackers.MLflow(tmp_path, {"lr": 1.0}, None)
    for step in range(6):
        first.values(step, {"loss_nats": float(step)})
    first.flush()  # and then it is killed
    again = trackers.MLflow(tmp_path, {"lr": 1.0}, 3)
    for step in range(3, 9):
        again.values(step, {"loss_nats": float(step)})
    again.event(7, "spike")
    again.close()
    client, run_id = mlflow.MlflowClient(), (tmp_path / "mlflow.id").read_text()
    history = client.get_metric_history(run_id, "loss_nats")
    assert sorted((metric.step, metric.value) for metric in history) == [(s, float(s)) for s in range(9)]
    assert client.get_run(run_id).data.tags["event at step 7"] == "spike"


def test_wandb_holds_the_run_offline(config_of, go, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="an optional extra: pip install wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    config = config_of(tmp_path / "run", log=("wandb",), steps=8, save_every=0)
    go(config.replace(stop_after=5))
    go(config, resume=True)
    wandb.teardown()  # waits for the process that writes the files
    names = (config.run.out / "wandb.id").read_text()
    files = sorted((config.run.out / "wandb").glob(f"offline-run-*/run-{names}.wandb"))
    assert len(files) == 2  # a run and its resume, which `wandb sync` puts together
    seen = {}
    for file in files:
        seen |= {(step, name): value for step, name, value in wandb_history(file)}

    def history(name):
        return {step: value for (step, one), value in seen.items() if one == name}

    assert_holds_the_trace(history, read_metrics(config.run.out / "metrics.jsonl"))


def wandb_history(file):
    """Yield (step, name, value) of an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    for raw in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            step = int(items["_step"])
            signals = {name: text for name, text in items.items() if name[0] != "_" and name != "event"}
            yield from ((step, name, float(json.loads(text))) for name, text in signals.items())


def records(data):
    """Yield the records of a LevelDB log, as W&B writes one: parts with checksum, length and type."""
    at, whole = 7, b""  # after the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end, too short for a part
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""
