"""Files as other programs write them; where the program is installed, written by the program itself."""

import json
import math

import numpy as np
import pytest

from stabviz.trace import Trace, diagnose, save
from stabviz.trace.log import MetricsLog
from stabviz.trace.readers import from_csv, from_tensorboard, from_trainer_state, read_run

NAN = math.nan


def trainer_state(path, history, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"global_step": 30, "max_steps": 30, "logging_steps": 10, "log_history": history}
    path.write_text(json.dumps(state | more))
    return path


HISTORY = [
    {"epoch": 0.5, "step": 10, "loss": 2.5, "grad_norm": 1.5, "learning_rate": 1e-3},
    {
        "epoch": 0.5,
        "step": 10,
        "eval_loss": 2.25,
        "eval_accuracy": 0.5,
        "eval_runtime": 0.1,
        "eval_samples_per_second": 90.0,
    },
    {"epoch": 1.0, "step": 20, "loss": 2.0, "grad_norm": 3.5, "learning_rate": 5e-4},
    {"epoch": 1.5, "step": 30, "loss": 0.0, "grad_norm": NAN, "learning_rate": 0.0},
    {"epoch": 1.5, "step": 30, "eval_loss": 1.75, "eval_accuracy": 0.75, "eval_runtime": 0.1},
    {"epoch": 1.5, "step": 30, "train_runtime": 3.0, "train_loss": 1.5, "total_flos": 1e9},
]


def test_from_trainer_state_keeps_what_stands_there_and_says_where_the_filter_was(tmp_path):
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", HISTORY))
    assert trace.steps.tolist() == [9, 19, 29]
    assert trace["loss_nats"].tolist() == [[2.5, 2.0, 0.0]]
    assert trace["lr"].tolist() == [[1e-3, 5e-4, 0.0]]
    np.testing.assert_array_equal(trace["grad_norm_preclip"], [[1.5, 3.5, NAN]])
    np.testing.assert_array_equal(trace["validation_loss_nats"], [[2.25, NAN, 1.75]])
    np.testing.assert_array_equal(trace["validation_score"], [[0.5, NAN, 0.75]])
    assert set(trace.signals) == {
        "loss_nats",
        "lr",
        "grad_norm_preclip",
        "validation_loss_nats",
        "validation_score",
    }
    assert trace.events == [
        {"run": 0, "step": 29, "kind": "filtered_loss", "signal": "loss_nats", "logged": 0.0}
    ]
    assert (trace.config["logging_steps"], trace.config["train_loss_mean"]) == (10, 1.5)
    assert trace.config["names"]["validation_score"] == "eval_accuracy"


def test_from_trainer_state_takes_the_newest_checkpoint_and_read_run_has_the_same(tmp_path):
    trainer_state(tmp_path / "checkpoint-9" / "trainer_state.json", HISTORY[:1])
    trainer_state(tmp_path / "checkpoint-30" / "trainer_state.json", HISTORY)
    assert from_trainer_state(tmp_path).n_steps == 3
    assert read_run(tmp_path).equals(from_trainer_state(tmp_path))


def test_from_trainer_state_evaluations_between_two_losses_are_thinned_and_counted(tmp_path):
    history = [HISTORY[0], {"step": 12, "eval_loss": 2.1}, {"step": 15, "eval_loss": 2.0}, HISTORY[2]]
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", history))
    np.testing.assert_array_equal(trace["validation_loss_nats"], [[2.0, NAN]])
    assert trace.config["thinned"] == {"validation_loss_nats": 1}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"log_history": [\n}', "line 2: must be JSON"),
        ('{"steps": 3}', "must hold a list log_history"),
        ('{"log_history": [[1.0]]}', r"log_history\[0\]: must be a line of names and values; got \[1.0\]"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "got a Git LFS pointer .* git lfs pull",
        ),
        (
            '{"log_history": [{"step": 1, "loss": "low"}]}',
            r"log_history\[0\]: loss must be a number; got 'low'",
        ),
    ],
)
def test_from_trainer_state_names_what_is_wrong(tmp_path, text, what):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=what):
        from_trainer_state(tmp_path)


def test_from_trainer_state_passes_over_lines_without_a_step_and_counts_them(tmp_path):
    history = [HISTORY[0], {"predict_loss": 1.0}, HISTORY[2], {"step": None, "loss": 9.0}]
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", history))
    assert trace["loss_nats"].tolist() == [[2.5, 2.0]]
    assert trace.config["lines_without_step"] == 2
    assert "2 lines without a step were passed over" in diagnose(trace).evidence


@pytest.mark.parametrize("history", [[], [HISTORY[1], HISTORY[4]], [HISTORY[5]], [{"loss": 1.0}]])
def test_from_trainer_state_without_a_loss_is_too_short_to_say(tmp_path, history):
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", history))
    assert trace.n_steps == sum("eval_loss" in line for line in history)
    assert diagnose(trace).evidence[0] == "no loss was logged; 8 rows or more show a course"


def test_from_trainer_state_assumes_the_trainers_defaults_and_names_no_unit(tmp_path):
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", HISTORY))
    assert (trace.config["optimizer"], trace.config["loss_unit"]) == ("adamw", "")
    assert any("assumed: AdamW, and clipping" in line for line in diagnose(trace).evidence)
    assert " nats" not in " ".join(diagnose(trace).evidence)


def test_from_trainer_state_knows_error_rates_losses_of_several_sets_and_rewards(tmp_path):
    history = [
        {"step": 10, "loss": 2.0, "eval_de_loss": 1.0, "eval_fr_loss": 3.0, "eval_wer": 40.0, "reward": -1.0},
        {"step": 20, "loss": 1.0, "eval_de_loss": 0.5, "eval_fr_loss": 1.5, "eval_wer": 30.0, "reward": 0.5},
    ]
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", history))
    assert trace["validation_loss_nats"].tolist() == [[2.0, 1.0]]
    assert trace["validation_score"].tolist() == [[40.0, 30.0]]
    assert trace["reward"].tolist() == [[-1.0, 0.5]]
    assert (trace.config["score_is_error"], trace.config["validation_loss_is"]) == (True, "mean of 2 losses")
    preference = [{"step": s, "loss": 1.0, "rewards/accuracies": s / 100} for s in (10, 20)]
    trace = from_trainer_state(trainer_state(tmp_path / "trainer_state.json", preference))
    assert trace["reward"].tolist() == [[0.1, 0.2]]


def test_from_trainer_state_without_a_state_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a trainer_state.json or a folder with one"):
        from_trainer_state(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_from_csv_knows_the_usual_names_and_leaves_empty_cells_unmeasured(tmp_path, delimiter):
    rows = [
        "Global Step,Train/Loss,grad norm,LR-AdamW,Val Loss,note,temperature",
        "0,4.5,1.5,1e-3,,start,7",
        "",
        "5,nan,inf,2e-3,,,8",
        "7,,,,3.5,,",
        "11,2.5,1.25,0,3.25,end,9",
    ]
    path = tmp_path / "log.csv"
    path.write_text("\ufeff" + "\r\n".join(rows).replace(",", delimiter), encoding="utf-8")
    trace = from_csv(path)
    assert trace.steps.tolist() == [0, 5, 11]
    np.testing.assert_array_equal(trace["loss_nats"], [[4.5, NAN, 2.5]])
    np.testing.assert_array_equal(trace["grad_norm_preclip"], [[1.5, math.inf, 1.25]])
    np.testing.assert_array_equal(trace["lr"], [[1e-3, 2e-3, 0.0]])
    np.testing.assert_array_equal(trace["validation_loss_nats"], [[NAN, 3.5, 3.25]])
    np.testing.assert_array_equal(trace["temperature"], [[7, 8, 9]])
    assert trace.config["text_columns"] == ["note"]
    assert read_run(tmp_path).equals(trace)


def test_from_csv_prefers_the_loss_of_training_and_keeps_our_own_names(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,train_loss,grad_norm_preclip/layer0\n0,9,4,1\n1,8,3,2\n")
    trace = from_csv(tmp_path / "log.csv")
    assert trace["loss_nats"].tolist() == [[4, 3]]
    assert trace["loss"].tolist() == [[9, 8]]
    assert trace["grad_norm_preclip/layer0"].tolist() == [[1, 2]]


def test_from_csv_reads_what_wandb_exports(tmp_path):
    """A history counts log calls in _step, and updates beside it; a chart has the run's name before."""
    history = tmp_path / "history.csv"
    history.write_text(
        "_step,_runtime,train/loss,train/grad_norm,train/global_step,eval/loss\n"
        "0,1.5,4,1,10,\n1,1.7,,,10,3.5\n2,2.1,3,1,20,\n3,2.2,,,,\n"
    )
    trace = from_csv(history)
    assert trace.steps.tolist() == [10, 20]
    assert trace["loss_nats"].tolist() == [[4, 3]]
    np.testing.assert_array_equal(trace["validation_loss_nats"], [[3.5, NAN]])
    assert (trace.config["lines_without_step"], trace.config["optimizer"]) == (1, "adamw")
    chart = tmp_path / "chart.csv"
    columns = [f'"warm-sun-3 - train/loss{end}"' for end in ("", "__MIN", "__MAX")]
    chart.write_text(",".join(['"train/global_step"', *columns]) + '\n"10","4","4","4"\n"20","3","3","3"\n')
    assert from_csv(chart)["loss_nats"].tolist() == [[4, 3]]
    assert set(from_csv(chart).signals) == {"loss_nats"}
    chart.write_text("Step,one - loss,two - loss\n0,1,2\n")
    with pytest.raises(ValueError, match=r"line 1: must hold one run; got a chart of 2, \['one', 'two'\]"):
        from_csv(chart)


def test_from_csv_reads_what_lightning_writes(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train_loss_epoch,train_loss_step,val_acc,val_loss\n"
        "0,49,,2.5,,\n0,99,,2.0,,\n0,99,,,0.5,2.25\n0,99,2.3,,,\n1,149,,1.5,,\n"
    )
    trace = from_csv(path)
    assert trace.steps.tolist() == [49, 99, 149]
    assert trace["loss_nats"].tolist() == [[2.5, 2.0, 1.5]]
    np.testing.assert_array_equal(trace["validation_loss_nats"], [[NAN, 2.25, NAN]])
    np.testing.assert_array_equal(trace["validation_score"], [[NAN, 0.5, NAN]])


def test_from_csv_a_gap_in_the_gradient_norm_is_not_read_as_nan(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,grad_norm\n0,4,1\n1,3,\n2,2,1\n3,1,1\n")
    often = from_csv(tmp_path / "log.csv")
    assert (often.steps.tolist(), often.config["losses_without_gradient_norm"]) == ([0, 2, 3], 1)
    (tmp_path / "log.csv").write_text("step,loss,grad_norm\n0,4,1\n1,3,\n2,2,\n3,1,\n")
    rarely = from_csv(tmp_path / "log.csv")
    assert rarely.n_steps == 4
    assert "grad_norm_preclip" not in rarely
    assert rarely.non_finite_step(0) is None
    np.testing.assert_array_equal(rarely["grad_norm_sparse"], [[1, NAN, NAN, NAN]])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("step,loss\n0,4.5\n1,low\n", r"line 3, column 'loss': must be a number; got 'low'"),
        ("step,loss\n0,4.5\n1\n", r"line 3: must have 2 cells, as line 1 has; got 1"),
        ("step,loss\n0,4.5\n0.5,4\n", r"line 3, column 'step': must be a whole number; got '0.5'"),
        (
            "step,loss\n0,4.5\n3,4\n2,4\n",
            r"line 4, column 'step': must not fall, a file holds one run; got 2 after 3",
        ),
        (
            "time,loss\n0,4.5\n",
            r"line 1: must name each column once, a step among them; got \['time', 'loss'\]",
        ),
        ("step,loss,loss\n0,4.5,1\n", "line 1: must name each column once"),
        ("step,value\n0,4.5\n", r"must have a loss, under one of .*; got \['value'\]"),
    ],
)
def test_from_csv_names_file_line_and_column(tmp_path, text, what):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=what) as raised:
        from_csv(tmp_path / "log.csv")
    assert "log.csv" in str(raised.value)


def test_from_csv_refuses_what_is_not_utf8(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"step,loss\n0,\xff\n")
    with pytest.raises(ValueError, match="must be UTF-8"):
        from_csv(tmp_path / "log.csv")


def write_events(folder, columns):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, values in columns.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step)


def test_from_tensorboard_reads_every_scalar_with_its_nan(tmp_path):
    loss = {step: 4.0 - step / 10_500 for step in range(10_500)} | {
        7: NAN
    }  # more than the reader keeps unasked
    write_events(
        tmp_path / "runs" / "one",
        {
            "train/loss": loss,
            "train/grad_norm": dict.fromkeys(loss, 0.5),
            "train/epoch": {0: 0.0},
            "train/learning_rate": dict.fromkeys(loss, 0.25),
            "eval/loss": {499: 3.5},
        },
    )
    trace = from_tensorboard(tmp_path)
    assert trace.n_steps == 10_500
    assert np.flatnonzero(np.isnan(trace["loss_nats"][0])).tolist() == [7]
    assert trace["loss_nats"][0, 5250] == pytest.approx(3.5)  # float32 in the file
    assert np.unique(trace["grad_norm_preclip"]).tolist() == [0.5]
    assert np.flatnonzero(np.isfinite(trace["validation_loss_nats"][0])).tolist() == [499]
    assert read_run(next(tmp_path.rglob("*tfevents*"))).equals(trace)
    assert read_run(tmp_path).equals(trace)


def test_from_tensorboard_reads_scalars_written_as_tensors(tmp_path):
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from torch.utils.tensorboard import SummaryWriter

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    with SummaryWriter(str(tmp_path)) as writer:
        for step, loss in enumerate((3.0, 2.0)):
            tensor = TensorProto(dtype=1, float_val=[loss])
            value = Summary.Value(tag="loss", tensor=tensor, metadata=metadata)
            writer.file_writer.add_summary(Summary(value=[value]), step)
    assert from_tensorboard(tmp_path)["loss_nats"].tolist() == [[3.0, 2.0]]


def test_from_tensorboard_refuses_several_runs_and_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold an event file"):
        from_tensorboard(tmp_path)
    for name in ("one", "two"):
        write_events(tmp_path / name, {"loss": {0: 1.0}})
    with pytest.raises(ValueError, match="must hold one run; got .*one.*two"):
        from_tensorboard(tmp_path)


def test_from_tensorboard_without_tensorboard_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "tensorboard.backend.event_processing.event_accumulator", None
    )
    with pytest.raises(RuntimeError, match="pip install tensorboard"):
        from_tensorboard(tmp_path)


def test_read_run_chooses_by_what_it_finds(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", {"seed": 3})
    log.step(0, {"loss_nats": 2.0})
    log.close()
    (tmp_path / "log.csv").write_text("step,loss\n0,9\n")
    assert read_run(tmp_path)["loss_nats"].tolist() == [[2.0]]
    assert read_run(tmp_path / "metrics.jsonl")["loss_nats"].tolist() == [[2.0]]
    assert read_run(tmp_path / "log.csv")["loss_nats"].tolist() == [[9.0]]
    for name in ("a.jsonl", "a.parquet"):
        saved = Trace(steps=[0], signals={"loss_nats": [[7.0]]}, runs=[{}])
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        save(saved, folder / name)
        assert read_run(folder).equals(saved)
        assert read_run(folder / name).equals(saved)


def test_read_run_says_what_it_found_instead(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must exist"):
        read_run(tmp_path / "none")
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(
        ValueError, match=r"must hold the record of one run; got \['seed-0'\]. Name one of them"
    ):
        read_run(tmp_path)
    (tmp_path / "notes.txt").write_text("step,loss")
    with pytest.raises(ValueError, match="path must be metrics.jsonl, trainer_state.json"):
        read_run(tmp_path / "notes.txt")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("step,loss\n0,1\n")
    with pytest.raises(ValueError, match=r"got \['a.csv', 'b.csv'\]"):
        read_run(tmp_path)
