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
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard

from stabviz.cli.main import main
from stabviz.cli.train import baseline_line
from stabviz.finetune import upload
from stabviz.finetune.config import FinetuneConfig, paths
from stabviz.finetune.train.guard import FAILED
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
    assert "Peak learning rate. None: one that suits" in text
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
    beside = json.loads((folder / "scores.json").read_text())["baselines"]
    assert list(beside) == ["majority", "tf-idf + logistic regression"]
    accuracy = beside["tf-idf + logistic regression"]["accuracy"]
    told = next(line for line in lines if line.startswith("baselines (accuracy, same rows): "))
    assert f"tf-idf + logistic regression {accuracy:.4f}; the model is " in told
    page = (folder / "report.html").read_text(encoding="utf-8")
    row = rf"baseline: tf-idf \+ logistic regression</th>.*?<td>{accuracy:.3f}</td>"
    assert re.search(row, page, re.DOTALL)


@pytest.mark.parametrize(
    ("metric", "reached", "verdict"),
    [("accuracy", 0.5, "NO better"), ("accuracy", 0.51, "better"), ("loss_nats", 0.5, "NO better")],
)
def test_a_model_that_does_not_beat_the_bag_of_words_is_told_so(metric, reached, verdict):
    beside = {"majority": {metric: 0.4}, "bag": {metric: 0.5}, "other": {"problem": "no word"}}
    done = [SimpleNamespace(scores={"score_name": metric, metric: reached, "baselines": beside})]
    said = f"majority 0.4000, bag 0.5000; the model is {verdict} than the best of them"
    assert baseline_line(done) == [f"baselines ({metric}, same rows): {said}"]
    assert baseline_line([SimpleNamespace(scores={"score_name": metric, metric: reached})]) == []


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
    assert call("finetune", "--config", tmp_path / "run.json", "--steps", 3).code in (0, FAILED)
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
        (["--stepz", "3"], "--stepz is no option; did you mean --steps?"),
        (["--learning-rate", "1e-3"], "--learning-rate is no option; did you mean --lr?"),
        (["--per_device_train_batch_size", "8"], "did you mean --batch?"),
        (
            ["--fp16", "--output_dir", "x"],
            "did you mean --precision?; --output_dir is no option; did you mean",
        ),
        (["--sawtooth"], "error: finetune: --sawtooth is no option. All of them"),
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
    assert said.code in (0, FAILED)  # two steps may have learned nothing
    assert "1 bad rows were skipped, the first:" in said.out


@pytest.fixture(scope="module")
def series(common, tmp_path_factory):
    """A finished series of two seeds, and what was printed."""
    folder = tmp_path_factory.mktemp("series") / "run"
    return folder, call("finetune", *common, "--steps", 6, "--seeds", 2, "--seed", 5, "--out", folder)


def test_finetune_of_several_seeds_tells_mean_spread_and_churn(series, tmp_path):
    folder, said = series
    assert said.code in (0, FAILED), said.error
    assert re.search(
        r"accuracy over 2 seeds: mean 0\.\d+, standard deviation .*; \d failed; churn 0\.\d+", said.out
    )
    assert {path.name for path in folder.iterdir()} >= {"seed-5", "seed-6", "summary.json", "report.html"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "mean of 2 runs" in page
    assert 'data-gid="curve-loss_nats-1"' in page
    assert call("report", folder, "--out", tmp_path / "again.html").code == 0
    assert "seed-6" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_best_weights_of_a_series_are_those_of_the_best_validation_score(series, tmp_path):
    folder, said = series
    best = {
        name: float(np.nanmax(read_metrics(folder / name / "metrics.jsonl")["validation_score"]))
        for name in ("seed-5", "seed-6")
    }
    winner = max(best, key=best.get)
    shown = re.search(r"best weights: (\S+) \(best validation score of 2 seeds: ([\d.]+)\)", said.out)
    assert shown.groups() == (str(folder / winner / "best"), f"{best[winner]:.4f}")
    text = "refund invoice account"
    assert call("predict", folder, text).out == call("predict", folder / winner, text).out
    shutil.copytree(folder, tmp_path / "copy")  # the other way round: not always the first, nor the last
    summary = json.loads((folder / "summary.json").read_text())
    other = summary["best_seed"] ^ 5 ^ 6
    (tmp_path / "copy" / "summary.json").write_text(json.dumps(summary | {"best_seed": other}))
    answer = call("predict", tmp_path / "copy", text).out
    assert answer == call("predict", folder / f"seed-{other}", text).out
    (tmp_path / "copy" / "summary.json").unlink()
    assert "must be a series of runs that has come to its end" in refused("predict", tmp_path / "copy", text)


def test_report_gives_no_mean_over_different_tasks(run, entities, series, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    described = json.loads((copy / "config.json").read_text())
    described["config"]["data"] = "elsewhere.csv"
    (copy / "config.json").write_text(json.dumps(described))
    call("report", run[0], copy, series[0], "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "mean of 3 runs" in page  # the run and the series have one task
    assert "mean of 4 runs" not in page
    assert "elsewhere.csv (message, topic)" in page


def test_what_a_run_starts_from_is_shown_kept_and_reported(common, tickets, tmp_path):
    flags = [flag for flag in common if flag != "--no-progress"]
    said = call(
        "finetune",
        *flags,
        "--steps",
        2,
        "--max-length",
        6,
        "--freeze",
        "embeddings",
        "--out",
        tmp_path / "run",
    )
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert f"data      {tickets}: 72 rows to train on, 9 to validate, 9 to test" in said.out
    assert "3: delay 24, money 24, trouble 24" in lines["classes"]
    assert re.search(
        r"median \d+ word pieces, longest 6; max_length 6 cuts \d+ of 72 training rows", said.out
    )
    parameters, trained = re.search(r"([\d,]+) parameters, ([\d,]+) trained", lines["model"]).groups()
    assert int(trained.replace(",", "")) < int(parameters.replace(",", ""))
    assert "cpu: " in lines["device"]
    assert lines["device"].endswith("; fp32")
    assert "2 steps of 16 rows: 0.4 epochs" in lines["training"]
    about = json.loads((tmp_path / "run" / "config.json").read_text())["about"]
    assert about["rows"] == {"train": 72, "validation": 9, "test": 9}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for word in ("72 rows to train on", "torch 2.", "wall time", "Wrong with the most confidence"):
        assert word in page
    mistakes = json.loads((tmp_path / "run" / "scores.json").read_text())["mistakes"]
    assert mistakes
    assert [one["confidence"] for one in mistakes] == sorted(
        (m["confidence"] for m in mistakes), reverse=True
    )
    assert all(one["true"] != one["predicted"] for one in mistakes)
    assert mistakes[0]["text"] in page


def test_the_best_weights_have_a_card(run, entities):
    folder, _ = run
    card = (folder / "best" / "README.md").read_text(encoding="utf-8")
    scores = json.loads((folder / "scores.json").read_text())
    head = ModelCard(card).data
    assert (head.library_name, head.pipeline_tag) == ("transformers", "text-classification")
    assert head.eval_results[0].metric_value == scores["accuracy"]
    assert "data: tickets.csv: 72 rows to train on" in card
    assert f"| macro_f1 | {scores['macro_f1']:.4f} |" in card
    assert "python -m stabviz finetune --data tickets.csv --text message --label topic" in card
    assert str(folder.parent) not in card
    words = (entities[0] / "best" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: token-classification" in words
    assert json.loads((entities[0] / "best" / "stabviz.json").read_text())["splitter"] == "marks"
    (said,) = [json.loads(x) for x in call("predict", entities[0], "my refund, please.").out.splitlines()]
    assert said["words"] == ["my", "refund", ",", "please", "."]


def test_push_to_hub_takes_the_best_weights_and_their_card(common, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(upload, "why_unreachable", lambda: None)
    monkeypatch.setattr(upload.HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(
        upload.HfApi, "create_repo", lambda self, repo, **o: pushed.append((repo, o["private"]))
    )
    monkeypatch.setattr(
        upload.HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path, **o: pushed.append(
            (repo_id, {p.name for p in folder_path.iterdir()})
        ),
    )
    said = call("finetune", *common, "--steps", 2, "--push-to-hub", "me/tickets", "--out", tmp_path / "run")
    assert "pushed to the hub: me/tickets" in said.out
    assert [repo for repo, _ in pushed] == ["me/tickets"] * 2
    assert pushed[0][1] is True
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= pushed[1][1]


def test_push_to_hub_is_refused_before_training_costs_anything(common, tmp_path, monkeypatch):
    flags = [*common, "--push-to-hub", "me/tickets", "--out", tmp_path / "run"]
    monkeypatch.setattr(upload, "why_unreachable", lambda: "no network")
    line = refused("finetune", *flags)
    assert "push_to_hub must be left out where the hub cannot be reached (no network)" in line
    monkeypatch.setattr(upload, "why_unreachable", lambda: None)
    monkeypatch.setattr(upload.HfApi, "whoami", _not_logged_in)
    assert "that you may write; got 'me/tickets' (401). Log in first: hf auth login" in refused(
        "finetune", *flags
    )
    assert not (tmp_path / "run").exists()


def _not_logged_in(self):
    raise OSError("401\nmore")


def test_evaluate_and_diagnose_take_the_folder_of_a_series(series):
    folder, _ = series
    scores = [json.loads((folder / name / "scores.json").read_text()) for name in ("seed-5", "seed-6")]
    line = next(x for x in call("evaluate", folder).out.splitlines() if x.startswith("accuracy"))
    figures = [f"{score['accuracy']:.4f}" for score in scores]
    assert line.split()[1:3] == figures
    assert f"mean {np.mean([score['accuracy'] for score in scores]):.4f}, standard deviation" in line
    said = call("diagnose", folder)
    assert said.code == 0, said.error
    assert f"{folder / 'seed-5'}" in said.out
    assert f"{folder / 'seed-6'}" in said.out


def test_a_run_that_fails_or_diverges_has_an_exit_code_of_its_own(common, tmp_path):
    said = call("finetune", *common, "--lr", 1e30, "--out", tmp_path / "stopped")
    assert (said.code, FAILED) == (3, 3)  # README
    assert "stopped, because 10 steps in a row were not finite" in said.error
    flags = ["--lr", 1e-9, "--steps", 2, "--overwrite", "--out", tmp_path / "run"]
    codes = set()
    for seed in range(4):  # one of four heads that learn nothing is no better than the majority
        said = call("finetune", *common, *flags, "--seed", seed)
        failed = json.loads((tmp_path / "run" / "scores.json").read_text())["failed"]
        assert said.code == (FAILED if failed else 0)
        assert (f"failed (exit code 3): seed {seed} is no better than the majority" in said.error) == failed
        codes.add(said.code)
    assert FAILED in codes


def test_early_stopping_is_announced(common, tmp_path):
    flags = ["--steps", 20, "--evaluate-every", 1, "--patience", 2, "--lr", 1e-12]
    said = call("finetune", *common, *flags, "--out", tmp_path / "run")
    words = "seed 0: stopped early, after 3 of 20 steps: no better score in 2 evaluations (--patience)"
    assert words in said.out
    assert "was at step 1" in said.out
    (event,) = read_metrics(tmp_path / "run" / "metrics.jsonl").events
    assert (event["kind"], event["best_at"], event["step"]) == ("early_stop", 1, 2)
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["ended"] == "no better score"


def test_the_config_of_a_run_serves_as_a_config_file(run, tmp_path):
    folder, _ = run
    said = call("finetune", "--config", folder / "config.json", "--steps", 2, "--out", tmp_path / "again")
    assert said.code in (0, FAILED), said.error
    assert read_metrics(tmp_path / "again" / "metrics.jsonl").config["batch"] == 16
    assert "out must not hold a run already" in refused("finetune", "--config", folder / "config.json")


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


def test_evaluate_scores_all_rows_of_another_file(run, tickets, tmp_path):
    folder, _ = run
    rows = tickets.read_text(encoding="utf-8")
    (tmp_path / "other.csv").write_text(rows, encoding="utf-8")
    shown = dict(
        line.split() for line in call("evaluate", folder, "--data", tmp_path / "other.csv").out.splitlines()
    )
    assert shown["rows"] == "90"
    (tmp_path / "other.csv").write_text(rows.replace("money", "mony"), encoding="utf-8")
    said = call("evaluate", folder, "--data", tmp_path / "other.csv")
    assert (said.code, len(said.error.splitlines())) == (2, 21)
    assert "30 rows are bad" in said.error
    assert "column 'topic': unknown label 'mony'; did you mean 'money'?" in said.error
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
    assert said.out.splitlines()[0].split()[:5] == ["seed", "updates", "f1", "precision", "recall"]
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


def test_pairs_several_classes_and_epochs_from_the_command_line(tiny_bert_folder, tmp_path):  # noqa: F811
    rows = [("my order is late", "where", "order; late"), ("please help", "print it", "")] * 20
    lines = ["\t".join(row) for row in [("premise", "hypothesis", "topics"), *rows]]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = ["--text", "premise", "--text-pair", "hypothesis", "--multi-label", "topics"]
    length = ["--epochs", "2", "--batch", "8", "--warmup", "0.1", "--no-progress", "--metric", "macro_f1"]
    here = ["--data", tmp_path / "pairs.tsv", "--model", tiny_bert_folder, "--out", tmp_path / "run"]
    said = call("finetune", *here, *columns, *length)
    assert said.code in (0, FAILED), said.error
    assert said.out.splitlines()[0].split()[:3] == ["seed", "updates", "macro_f1"]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl").n_steps == 2 * (32 // 8)
    said = call("predict", tmp_path / "run", "my order is late", "--text-pair", "where")
    by_tab = call("predict", tmp_path / "run", stdin="my order is late\twhere\n")
    assert said.out == by_tab.out
    answer = json.loads(said.out)
    assert (answer["text"], answer["text_pair"]) == ("my order is late", "where")
    assert set(answer["probabilities"]) == {"late", "order"}
    assert call("evaluate", tmp_path / "run").out.startswith("micro_f1")
    assert "Hamming loss" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "pairs must be 1 second texts for 1 texts" in refused("predict", tmp_path / "run", "my order")
