"""metrics.jsonl: written line by line, read back as a Trace."""

import json
import math
import re

import numpy as np
import pytest

from stabviz.trace.log import MetricsLog, read_metrics


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", {"seed": 3, "clip_norm": math.inf, "name": "desk"})
    yield log
    log.close()


def test_read_metrics_returns_every_value_and_nan_where_nothing_was_measured(log):
    log.step(0, {"loss_nats": 2.5, "update_rms": 0.75})
    log.step(1, {"loss_nats": 2.25})
    log.evaluation(1, {"validation_score": 0.5})
    log.flush()
    trace = read_metrics(log.path)
    np.testing.assert_array_equal(trace["loss_nats"], [[2.5, 2.25]])
    np.testing.assert_array_equal(trace["update_rms"], [[0.75, math.nan]])
    np.testing.assert_array_equal(trace["validation_score"], [[math.nan, 0.5]])
    assert trace.runs == [{"seed": 3}]
    assert trace.config == {"seed": 3, "clip_norm": math.inf, "name": "desk"}


def test_read_metrics_keeps_raw_non_finite_values_and_events(log):
    log.step(0, {"loss_nats": math.nan, "grad_norm_preclip": math.inf})
    log.event(0, "non_finite", rows=[4, 9], loss=-math.inf)
    log.flush()
    trace = read_metrics(log.path)
    assert math.isnan(trace["loss_nats"][0, 0])
    assert trace["grad_norm_preclip"][0, 0] == math.inf
    assert trace.events == [{"run": 0, "step": 0, "kind": "non_finite", "rows": [4, 9], "loss": -math.inf}]


def test_metrics_log_writes_strict_json(log):
    log.step(0, {"loss_nats": math.nan})
    log.flush()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in log.path.read_text().splitlines()]
    assert lines[1] == {"step": 0, "values": {"loss_nats": {"$float": "NaN"}}}


def test_read_metrics_reads_the_spelling_of_earlier_versions(log):
    log.step(0, {"loss_nats": math.nan, "grad_norm_preclip": math.inf})
    log.event(0, "non_finite", loss=-math.inf)
    log.flush()
    old = re.sub(r'\{"\$float": ("\w+"|"-Infinity")\}', r"\1", log.path.read_text())
    assert old.count("Infinity") == 3
    assert "$float" not in old
    new = read_metrics(log.path)
    log.path.write_text(old)
    assert read_metrics(log.path).equals(new)


def test_metrics_log_goes_on_where_a_checkpoint_left_it(log):
    log.step(0, {"loss_nats": 2.0})
    kept = log.flush()
    log.step(1, {"loss_nats": 9.0})
    log.close()
    again = MetricsLog(log.path, {}, keep_bytes=kept)
    again.step(1, {"loss_nats": 1.0})
    again.close()
    np.testing.assert_array_equal(read_metrics(log.path)["loss_nats"], [[2.0, 1.0]])


def test_metrics_log_refuses_to_go_on_with_a_file_that_is_too_short(log):
    size = log.flush()
    with pytest.raises(ValueError, match=f"must hold at least {size + 1} bytes"):
        MetricsLog(log.path, {}, keep_bytes=size + 1)


def test_read_metrics_leaves_out_a_last_line_that_was_cut_short(log):
    log.step(0, {"loss_nats": 2.0})
    log.step(1, {"loss_nats": 1.0})
    log.flush()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-5])
    assert read_metrics(log.path).steps.tolist() == [0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: must be one JSON object"),
        ('{"step": 0}', "line 2: must be a step, an event or an evaluation"),
        ('{"values": {"loss_nats": 1.0}}', "line 2: must be a step"),
        ('{"step": 0, "values": {"loss_nats": "high"}}', "line 2: must be a step"),
        ("[1]", "line 2: must be a step"),
    ],
)
def test_read_metrics_names_file_and_line_of_what_is_damaged(log, line, message):
    log.flush()
    with open(log.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_metrics(log.path)
    assert str(log.path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b'{"schema": "other"}\n', b"[]\n"])
def test_read_metrics_refuses_a_file_without_its_header(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 1"):
        read_metrics(path)
