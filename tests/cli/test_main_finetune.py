"""finetune, resume, evaluate, predict, report and diagnose as a user calls them: a tiny model, real files."""

import contextlib
import csv
import io
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stabviz.cli.main import main
from stabviz.finetune.config import FinetuneConfig, paths
from stabviz.finetune.train.interrupt import STOPPED
from stabviz.trace.log import read_metrics
from tests.finetune.conftest import tiny_bert_folder, tiny_tokenizer  # noqa: F401

TOPICS = {
    "delay": ["order", "late", "where", "slow", "day"],
    "money": ["invoice", "refund", "account", "to", "and"],
    "trouble": ["lock", "router", "help", "print", "bad"],
}
COMMANDS = ("finetune", "resume", "evaluate", "predict", "report", "diagnose")


@dataclass(frozen=True)
class Said:
    """What one command left behind."""

    code: int
    out: str
    error: str


def call(*arguments, stdin=""):
    """Run one command in this process, with what it reads from standard input."""
    out, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # tyro leaves this way after --help and after a wrong flag
            code = exit.code
    return Said(code, out.getvalue(), error.getvalue())


def refused(*arguments, stdin=""):
    """The one line that a user error is answered with."""
    said = call(*arguments, stdin=stdin)
    lines = said.error.splitlines()
    assert said.code == 2, said
    assert len(lines) == 1, said.error
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    """A CSV of 90 messages on three topics that a few steps can tell apart."""
    path = tmp_path_factory.mktemp("tickets") / "tickets.csv"
    draw = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topic"])
        for row in range(90):
            topic = list(TOPICS)[row % 3]
            writer.writerow([" ".join(draw.choices(TOPICS[topic], k=draw.randint(2, 7))), topic])
    return path


@pytest.fixture(scope="module")
def common(tickets, tiny_bert_folder):  # noqa: F811
    return [
        "--data",
        tickets,
        "--text",
        "message",
        "--label",
        "topic",
        "--model",
        tiny_bert_folder,
        "--steps",
        24,
        "--warmup-steps",
        2,
        "--lr",
        5e-3,
        "--batch",
        16,
        "--evaluate-every",
        8,
        "--save-every",
        8,
        "--signals-every",
        4,
        "--no-progress",
    ]


@pytest.fixture(scope="module")
def run(common, tmp_path_factory):
    """A finished run, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, call("finetune", *common, "--out", folder)


@pytest.fixture(scope="module")
def entities(tiny_bert_folder, tmp_path_factory):  # noqa: F811
    """A finished run on tags."""
    folder = tmp_path_factory.mktemp("entities")
    draw = random.Random(1)
    with open(folder / "names.jsonl", "w", encoding="utf-8") as file:
        for _ in range(60):
            words, tags = [], []
            for _ in range(draw.randint(2, 4)):
                name = draw.random() < 0.5
                words += (
                    draw.choice([["router", "print"], ["refund"]])
                    if name
                    else [draw.choice(["my", "is", "late"])]
                )
                tags += (["B-PRODUCT", "I-PRODUCT"] if words[-1] == "print" else ["B-ORG"]) if name else ["O"]
            file.write(json.dumps({"words": words, "tags": tags}) + "\n")
    said = call(
        "finetune",
        "--data",
        folder / "names.jsonl",
        "--text",
        "words",
        "--tags",
        "tags",
        "--model",
        tiny_bert_folder,
        "--steps",
        60,
        "--lr",
        1e-2,
        "--warmup-steps",
        2,
        "--batch",
        16,
        "--no-progress",
        "--out",
        folder / "run",
    )
    return folder / "run", said


def test_module_runs_as_a_program_and_names_the_commands():
    result = subprocess.run([sys.executable, "-m", "stabviz", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(re.search(rf"\b{name}\b", result.stdout) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_ends_well(command):
    said = call(command, "--help")
    assert said.code == 0
    assert f"usage: python -m stabviz {command}" in said.out
    assert said.error == ""


def test_help_of_finetune_is_made_from_the_config():
    text = re.sub(r"[\s│]+", " ", call("finetune", "--help").out)
    for name in paths(FinetuneConfig):
        assert re.search(rf"--(no-)?{name.replace('_', '-')}\b", text), name
    assert "Peak learning rate." in text
    assert "--schedule {constant,warmup,cosine,inverse_sqrt,linear,warmup_stable_decay}" in text
    assert "{None}" not in text


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_help_comes_in_groups_of_at_most_a_dozen_flags(command):
    groups = re.split(r"\s(\S+) options\s+\n", call(command, "--help").out)[1:]
    flags = {
        title: len(re.findall(r"^.? +--[a-z]", text, re.MULTILINE))
        for title, text in zip(groups[::2], groups[1::2], strict=True)
    }
    assert {"run", "train", "train.optimizer", "train.compute", "train.guard"} < set(flags)
    assert 5 <= flags["train.guard"] <= max(flags.values()) <= 12


@pytest.mark.parametrize("command", [["--help"], ["diagnose", "--help"], ["finetune", "--help"]])
def test_help_does_not_wait_for_torch(command):
    code = "import sys; from stabviz.cli.main import main; main(sys.argv[1:])"
    listed = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    result = subprocess.run([sys.executable, "-c", listed, *command], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_finetune_trains_and_fills_the_folder(run):
    folder, said = run
    assert said.code == 0, said.error
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "best",
        "scores.json",
        "report.html",
    }
    trace = read_metrics(folder / "metrics.jsonl")
    assert trace.n_steps == 24
    assert trace["loss_nats"][0, -1] < 0.7 * trace["loss_nats"][0, 0]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["accuracy"] > 0.6
    assert scores["failed"] is False


def test_finetune_prints_table_verdict_and_where_things_are(run):
    folder, said = run
    lines = said.out.splitlines()
    assert lines[0].split()[:3] == ["seed", "updates", "accuracy"]
    assert lines[1].split()[:2] == ["0", "24"]
    assert any(line.startswith("seed 0: healthy. loss went from") for line in lines)
    assert f"report: {folder / 'report.html'}" in lines
    assert f"best weights: {folder / 'best'}" in lines


def test_finetune_writes_a_report_that_holds_the_verdict(run):
    folder, _ = run
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '<span class="kind">healthy</span>: loss went from' in page
    accuracy = json.loads((folder / "scores.json").read_text())["accuracy"]
    assert f"<td>{accuracy:.3f}</td>" in page
    assert 'data-gid="curve-validation_score-0"' in page
    assert "Gradient norm by layer" in page
    assert '<th scope="row">delay</th>' in page
    assert "<script" not in page


def test_finetune_will_not_overwrite_a_run(run, common):
    folder, _ = run
    before = (folder / "metrics.jsonl").read_bytes()
    line = refused("finetune", *common, "--out", folder)
    assert "out must not hold a run already" in line
    assert "resume" in line
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_finetune_reads_a_config_file_that_flags_overrule(tickets, tiny_bert_folder, tmp_path):  # noqa: F811
    settings = {
        "data": str(tickets),
        "text": "message",
        "label": "topic",
        "model": str(tiny_bert_folder),
        "steps": 99,
        "warmup_steps": 1,
        "batch": 8,
        "progress": False,
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert call("finetune", "--config", tmp_path / "run.json", "--steps", 3).code == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl").n_steps == 3
    (tmp_path / "run.json").write_text('{"stepz": 3}')
    assert "'stepz' is no setting. Did you mean 'steps'?" in refused(
        "finetune", "--config", tmp_path / "run.json"
    )
    assert "run.toml" in refused("finetune", "--config", tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--label", "subject"], "column 'subject': is missing"),
        (["--text", "body"], "column 'body': is missing"),
        (["--model", "./nowhere"], "model must be a folder that exists, or a model id"),
        (["--device", "cuda:99"], "device must be one that is there; got 'cuda:99'"),
        (["--freeze", "nothing-is-called-so"], "nothing-is-called-so"),
    ],
)
def test_finetune_answers_a_mistake_with_one_line(change, words, common, tmp_path):
    assert words in refused("finetune", *common, "--out", tmp_path / "run", *change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--steps", "0"], "steps must be at least 1; got 0"),
        (["--lr", "quick"], "could not convert string to float: 'quick'"),
        (["--schedule", "sawtooth"], "sawtooth"),
        (["--stepz", "3"], "--steps"),
    ],
)
def test_finetune_answers_a_wrong_flag(change, words, common, tmp_path):
    said = call("finetune", *common, "--out", tmp_path / "run", *change)
    assert said.code == 2
    assert words in re.sub(r"[\s│]+", " ", said.error + said.out)
    assert not (tmp_path / "run").exists()


def test_finetune_names_the_bad_row_of_the_data(tickets, common, tmp_path):
    bad = tmp_path / "bad.csv"
    lines = tickets.read_text(encoding="utf-8").splitlines()
    lines[7] = ",money"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    line = refused("finetune", *common, "--out", tmp_path / "run", "--data", bad)
    assert line.endswith("bad.csv, line 8, column 'message': is an empty text")
    said = call(
        "finetune", *common, "--steps", 2, "--out", tmp_path / "run", "--data", bad, "--bad-rows", "skip"
    )
    assert said.code == 0
    assert "1 bad rows were skipped, the first:" in said.out


def test_finetune_of_several_seeds_tells_mean_spread_and_churn(common, tmp_path):
    said = call("finetune", *common, "--steps", 6, "--seeds", 2, "--seed", 5, "--out", tmp_path / "run")
    assert said.code == 0, said.error
    assert re.search(
        r"accuracy over 2 seeds: mean 0\.\d+, standard deviation .*; \d failed; churn 0\.\d+", said.out
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "seed-5",
        "seed-6",
        "summary.json",
        "report.html",
    }
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "mean of 2 runs" in page
    assert 'data-gid="curve-loss_nats-1"' in page
    assert call("report", tmp_path / "run", "--out", tmp_path / "again.html").code == 0
    assert "seed-6" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_a_stopped_run_is_resumed_to_the_same_log(run, common, tmp_path):
    folder, _ = run
    said = call("finetune", *common, "--out", tmp_path / "run", "--stop-after", 11)
    assert said.code == STOPPED
    assert "stopped after 11 updates and saved" in said.out
    assert f"python -m stabviz resume {tmp_path / 'run'}" in said.out
    assert "no run has come to its end yet" in said.out
    assert (tmp_path / "run" / "report.html").exists()
    said = call("resume", tmp_path / "run")
    assert said.code == 0, said.error
    assert f"best weights: {tmp_path / 'run' / 'best'}" in said.out
    whole, resumed = read_metrics(folder / "metrics.jsonl"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert resumed["loss_nats"].tolist() == whole["loss_nats"].tolist()


def test_resume_refuses_what_it_cannot_go_on_with(run, tmp_path):
    folder, _ = run
    assert "holds no config.json" in refused("resume", tmp_path)
    assert "is finished; --force with --steps trains on" in refused("resume", folder)


def test_resume_of_a_finished_run_trains_on_to_more_steps(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = read_metrics(folder / "metrics.jsonl")
    steps = before.n_steps + 4
    said = call("resume", folder, "--force", "--steps", steps)
    assert said.code == 0, said.error
    after = read_metrics(folder / "metrics.jsonl")
    assert after.n_steps == steps
    assert after["loss_nats"][:, : before.n_steps].tolist() == before["loss_nats"].tolist()


def test_evaluate_gives_the_scores_of_the_run(run):
    folder, _ = run
    said = call("evaluate", folder)
    assert said.code == 0
    scores = json.loads((folder / "scores.json").read_text())
    shown = dict(line.split() for line in said.out.splitlines())
    for key in ("accuracy", "macro_f1", "ece", "loss_nats"):
        assert shown[key] == f"{scores[key]:.4f}"
    assert call("evaluate", folder, "--split", "validation").code == 0


def test_evaluate_takes_other_data_with_the_same_labels(run, tickets, tmp_path):
    folder, _ = run
    rows = tickets.read_text(encoding="utf-8")
    (tmp_path / "other.csv").write_text(rows, encoding="utf-8")
    assert "accuracy" in call("evaluate", folder, "--data", tmp_path / "other.csv").out
    (tmp_path / "other.csv").write_text(rows.replace("money", "cash"), encoding="utf-8")
    line = refused("evaluate", folder, "--data", tmp_path / "other.csv")
    assert "data must have the labels of the run, ['delay', 'money', 'trouble']" in line
    assert "best/" in refused("evaluate", _unfinished(folder, tmp_path / "unfinished"))
    assert "holds no config.json" in refused("evaluate", tmp_path)


def _unfinished(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
    return copy


def test_predict_reads_arguments_a_file_and_standard_input(run, tmp_path):
    folder, _ = run
    texts = ["refund invoice refund account", "router lock print help"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    lines = "\n".join(texts) + "\n"
    answers = [
        call("predict", folder, *texts),
        call("predict", folder, "--file", tmp_path / "texts.txt"),
        call("predict", folder, stdin=lines),
        call("predict", folder, "--file", "-", stdin=lines),
        call("predict", folder / "best", *texts),
    ]
    assert [said.code for said in answers] == [0] * 5
    assert len({said.out for said in answers}) == 1
    said = [json.loads(line) for line in answers[0].out.splitlines()]
    assert [one["text"] for one in said] == texts
    assert [one["label"] for one in said] == ["money", "trouble"]
    for one in said:
        assert one["probability"] == max(one["probabilities"].values())
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)  # float32
        assert list(one["probabilities"]) == list(TOPICS)


def test_predict_refuses_nothing_and_nowhere(run, tmp_path):
    folder, _ = run
    assert "texts must be given as arguments, by --file, or on standard input" in refused("predict", folder)
    assert "texts must not be empty; got text 2 = ' '" in refused("predict", folder, "order", " ")
    assert "must hold a model that `stabviz finetune` saved" in refused("predict", tmp_path, "order")
    assert "none.txt" in refused("predict", folder, "--file", tmp_path / "none.txt")


def test_entities_are_trained_scored_and_predicted(entities):
    folder, said = entities
    assert said.code == 0, said.error
    assert said.out.splitlines()[0].split()[:5] == ["seed", "updates", "precision", "recall", "f1"]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["f1"] > 0.5
    assert set(scores["by_type"]) == {"PRODUCT", "ORG"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">PRODUCT</th>' in page
    found = json.loads(call("predict", folder, "my router print is late").out)
    assert found["words"] == ["my", "router", "print", "is", "late"]
    assert found["entities"] == [{"type": "PRODUCT", "text": "router print"}]
    assert "f1" in call("evaluate", folder).out


def test_report_sets_runs_of_any_kind_side_by_side(run, entities, tmp_path):
    folder, _ = run
    foreign = tmp_path / "elsewhere.csv"
    foreign.write_text("step,train_loss,val_loss\n" + "".join(f"{s},{2 - s / 20},\n" for s in range(20)))
    said = call("report", folder, entities[0], foreign, "--out", tmp_path / "deep" / "page.html")
    assert said.code == 0, said.error
    assert "3 runs" in said.out
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    for name in (folder, entities[0], foreign):
        assert str(name) in page
    assert page.count('<div class="card ') == 3
    assert '<tr class="differs"><th scope="row">steps</th>' in page
    assert "path must exist" in refused("report", tmp_path / "nowhere", "--out", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_diagnose_names_the_kind_with_evidence(run):
    folder, _ = run
    said = call("diagnose", folder)
    assert said.code == 0
    assert said.out.splitlines()[0] == f"{folder}: healthy"
    assert "  evidence: " in said.out
