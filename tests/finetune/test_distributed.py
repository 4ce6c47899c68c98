"""Several processes: two over gloo give what one gives with the same global batch, and decide everything
alike.

This file is also the program of each process: `python test_distributed.py FOLDER` runs every scenario there.
"""

import dataclasses
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.batches import collate, plan_epoch
from stabviz.finetune.data.class_weights import weigh_targets
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.loader import Loader
from stabviz.finetune.distributed import ProcessGroup, bare, local, share, whole
from stabviz.finetune.evaluation import evaluate
from stabviz.finetune.run import build_model
from stabviz.finetune.tasks import KINDS
from stabviz.finetune.train.checkpoint import newest_checkpoint, read_checkpoint
from stabviz.finetune.train.guard import TrainingFailed
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import Training
from stabviz.finetune.train.setup import Setup
from stabviz.models.pretrained import load_tokenizer
from stabviz.trace.log import read_metrics

ROWS, BATCH = 300, 7  # each row comes once; 7 rows are shares of 4 and 3
CLASSES, TAGS = ("a", "b", "c"), ("O", "B-X", "I-X")  # 3 does not divide by 2 processes
WEIGHTS = torch.tensor([0.25, 1.0, 4.0])
WORDS = [
    "order",
    "invoice",
    "late",
    "router",
    "please",
    "cancel",
    "help",
    "print",
    "account",
    "refund",
    "slow",
]
TOLERANCE = 2e-5
"""Of losses: sums in another order are off by 1e-7 of themselves, and 12 updates of Adam amplify that some 50
times."""
EPS = 1e-5
"""Adam's epsilon here: the gradient of a key's bias is 0 but for rounding, some 1e-9, and must not set a
direction."""


def data(kind, tokenizer, count=ROWS, seed=0):
    """Rows of uneven length; of the tags, every other row in a way has no label that counts."""
    rng = np.random.default_rng(seed)
    sizes, classes = rng.integers(2, 12, size=count), rng.integers(3, size=count)
    if kind != "tags":  # each class has words of its own
        texts = [
            " ".join(rng.choice(WORDS[label::3], size=n)) for n, label in zip(sizes, classes, strict=True)
        ]
        labels = {
            "classes": classes,
            "multi_label": np.eye(3, dtype=int)[classes],
            "regression": classes - 1.0,
        }
        table = {"text": texts, "label": labels[kind].tolist()}
    else:
        words = [rng.choice(WORDS, size=n).tolist() for n in sizes]
        counts = rng.random(count) < (0.4 if seed == 0 else 1)
        table = {
            "words": words,
            "tags": [[WORDS.index(w) % 3 if counts[i] else -100 for w in words[i]] for i in range(count)],
        }
    return TokenRows(Dataset.from_dict({"row": range(count), **table}), tokenizer, kind=kind, max_length=16)


class Planted:
    """An objective with faults: a micro-batch in which one of these rows stands has fault(loss), once."""

    def __init__(self, objective, faults):
        self.objective, self.faults = objective, faults

    def __call__(self, model, batch):
        loss, measured = self.objective(model, batch)
        here = [row for row in batch["rows"].tolist() if row in self.faults]
        return self.faults[here[0]](loss) if here else loss, measured


def setup(base, processes, name, *, kind="classes", weights=None, faults=None, **settings):
    settings = {
        "steps": 12,
        "batch": BATCH,
        "lr": 1e-2,
        "warmup_steps": 2,
        "eps": EPS,
        "dropout": 0.0,
        "model": str(base / "model"),
        "out": base / name,
        "progress": False,
        "device": "cpu",
        "bucket": False,
        "save_every": 5,
        "evaluate_every": 6,
        "keep": 9,
        "clip_norm": 0.5,
        "signals_every": 4,
    } | settings
    config = FinetuneConfig.of(**settings)
    tokenizer = load_tokenizer(config.model.name)
    labels = {"tags": TAGS, "regression": ("value",)}.get(kind, CLASSES)
    validation = data(kind, tokenizer, 41, seed=1)
    if kind == "tags":
        validation.tags = [
            [t for t in validation[(0, i)]["labels"] if t != -100] for i in range(len(validation))
        ]

    def score(model, check):
        return evaluate(
            model, validation, labels, pad_id=0, processes=processes, autocast=torch.no_grad, check=check
        )

    def save_model(model, folder, weights):
        model.save_pretrained(folder, state_dict=weights)

    return Setup(
        config=config,
        processes=processes,
        model=build_model(config, kind, labels, tokenizer),
        evaluate=score,
        objective=Planted(KINDS[kind].objective(0.0, weights), faults or {}),
        weigh=partial(weigh_targets, class_weights_C=weights),
        rows=data(kind, tokenizer),
        collate=partial(collate, pad_id=0),
        save_model=save_model,
        fingerprint="here",
    )


def planned(position):
    return plan_epoch(data_lengths(), batch=BATCH, seed=0, epoch=0, bucket=False)[position]


def data_lengths():
    return [1] * ROWS  # without buckets the plan does not look at them


# What each process does. A scenario returns what this process saw; the test compares the processes.


def run(base, processes, name, *, resume=False, **settings):
    """Train; return the progress, and a hash of this process's whole weights."""
    training = Training(setup(base, processes, name, **settings), resume=resume, force=False)
    failed = ""
    try:
        training.run(Interrupt())
    except TrainingFailed as error:
        failed = str(error)
    weights = hashlib.sha256(
        b"".join(whole(p.detach()).numpy().tobytes() for p in bare(training.model).parameters())
    )
    shares = sum(local(p).numel() for p in bare(training.model).parameters())
    return {
        "progress": asdict(training.progress),
        "weights": weights.hexdigest(),
        "failed": failed,
        "shares": shares,
    }


def interrupted(base, processes, name, **settings):
    """A run in which one process alone is told to stop; then what is left of it."""

    def ask(loss):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    row = planned(6)[1::2][0]  # the second process's
    first = run(base, processes, name, faults={row: ask}, **settings)
    return {"first": first, **run(base, processes, name, resume=True, **settings)}


def refused(base, processes, name):
    """A folder that holds a run already: the leading process alone looks at it."""
    with pytest.raises(ValueError, match="must not hold a run already"):
        run(base, processes, name)
    return {"refused": True}


RANDOM = {"dropout": 0.1, "word_dropout": 0.2, "steps": 14, "ema_decay": 0.8}
POISON, SPIKES = 4, (22, 23)
FAULTS = {
    "nan": lambda: {planned(POISON)[1::2][1]: lambda loss: loss * math.nan},
    "spike": lambda: {row: lambda loss: loss + 100 for p in SPIKES for row in planned(p)},
    "failing": lambda: {planned(p)[1]: lambda loss: loss * math.nan for p in (3, 4)},
}
SCENARIOS = {
    # micro-batches of 3 and 1 rows here, of 3 there; a seed that has learned after 12 steps
    "classes": {"micro_batch": 3, "seed": 2},
    "tags": {"kind": "tags", "batch": 4, "micro_batch": 1},
    "weighted": {"weights": WEIGHTS, "micro_batch": 3, "seed": 2},
    "multi_label": {"kind": "multi_label", "weights": WEIGHTS, "micro_batch": 2, "seed": 2},
    "regression": {"kind": "regression", "micro_batch": 3, "seed": 2},
    "nan": {"faults": "nan", "micro_batch": 2},
    "spike": {"faults": "spike", "steps": 28},
    "failing": {"faults": "failing", "max_bad_steps": 2},
}
RESUMED = {"ddp": {"optimizer": "adamw_fused"}, "fsdp": {"optimizer": "adamw"}}


def settings_of(scenario):
    settings = dict(SCENARIOS[scenario])
    return settings | ({"faults": FAULTS[settings["faults"]]()} if "faults" in settings else {})


def everything(base, processes):
    seen = {}
    for parallel in ("ddp", "fsdp"):
        for scenario in SCENARIOS:
            seen[f"{scenario}-{parallel}"] = run(
                base, processes, f"{scenario}-{parallel}", parallel=parallel, **settings_of(scenario)
            )
        settings = RANDOM | RESUMED[parallel] | {"parallel": parallel}
        seen[f"straight-{parallel}"] = run(base, processes, f"straight-{parallel}", **settings)
        seen[f"resumed-{parallel}"] = interrupted(base, processes, f"resumed-{parallel}", **settings)
    seen["ours-fsdp"] = run(base, processes, "ours-fsdp", parallel="fsdp", implementation="stabviz", steps=6)
    seen["refused"] = refused(base, processes, "classes-ddp")
    return seen


# What they gave, beside one process


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_bert_folder):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "model").symlink_to(tiny_bert_folder)
    return folder


def launched(command, folder, *, ranks, timeout, code=0):
    """Start a process for each of `ranks` (or one without), wait, and end all of them at the time limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parent.parent.parent)
    common = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    processes = []
    for rank in ranks:
        here = (
            {}
            if rank is None
            else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(ranks))}
        )
        output = open(folder / f"output-{rank}.txt", "w")
        processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=common | here,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        )
        output.close()
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = "\n".join((folder / f"output-{rank}.txt").read_text()[-3000:] for rank in ranks)
    assert codes == [code] * len(ranks), said
    return said


@pytest.fixture(scope="module")
def seen(base):
    """What each of two processes saw; all scenarios share one start, which takes longer than they do."""
    launched([str(Path(__file__).resolve()), str(base)], base, ranks=(0, 1), timeout=600)
    return [json.loads((base / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(base):
    """Run a scenario in this process, once, with the whole batch at once."""
    done = {}

    def get(scenario, **settings):
        if scenario not in done:
            settings = settings or settings_of(scenario) | {"micro_batch": None}
            done[scenario] = run(base, ProcessGroup.join("cpu"), f"{scenario}-alone", **settings)
        return done[scenario]

    return get


def signals(base, name):
    return read_metrics(base / name / "metrics.jsonl")


def best_weights(base, name):
    from safetensors.torch import load_file

    return load_file(base / name / "best" / "model.safetensors")


def assert_same_run(base, one, other, tolerance=TOLERANCE):
    """Every signal of every step, the evaluations and the weights that were kept."""
    a, b = signals(base, one), signals(base, other)
    assert np.array_equal(a.steps, b.steps)
    names = set(a.signals) - {"max_attention_logit", "attention_entropy"}  # of one micro-batch
    classes = "multi_label" not in one and "regression" not in one
    assert {
        "loss_nats",
        *(("accuracy", "log_z") if classes else ()),
        "targets",
        "grad_norm_preclip/layer1",
        "update_rms/head",
        "second_moment_ratio/layer0",
        "param_norm/embeddings",
        "validation_loss_nats",
    } <= names
    for name in sorted(names):
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)
    if "regression" not in one:  # a correlation is no count of right answers
        np.testing.assert_array_equal(a["validation_score"], b["validation_score"])
    first, second = best_weights(base, one), best_weights(base, other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


PARALLEL = pytest.mark.parametrize("parallel", ["ddp", "fsdp"])


@PARALLEL
@pytest.mark.parametrize("scenario", ["classes", "weighted", "multi_label", "regression", "tags"])
def test_two_processes_give_the_run_of_one(base, seen, alone, scenario, parallel):
    alone(scenario)
    trace = signals(base, f"{scenario}-{parallel}")
    scores = trace["validation_score"][0]
    assert len(trace.steps) >= 12
    losses = trace["loss_nats"][0]
    # it learns: equality says something; under weights 12 steps are too few for a score, and the loss tells
    learns = losses[-4:].mean() < 0.95 * losses[:4].mean() if "weights" in SCENARIOS[scenario] else False
    assert learns or scores[-1] > 0.5
    assert_same_run(base, f"{scenario}-alone", f"{scenario}-{parallel}")


def test_the_tags_of_some_shares_do_not_count(base, seen):
    """Shares without a target and steps without one were there: else the test above would say less."""
    rows = data("tags", load_tokenizer(str(base / "model")))
    taken = len(signals(base, "tags-ddp").steps)
    plans = plan_epoch(rows.lengths, batch=4, seed=0, epoch=0, bucket=False)[:taken]
    counts = [
        [
            sum(
                rows[(0, i)]["labels"][j] != -100
                for i in plan[r::2]
                for j in range(len(rows[(0, i)]["labels"]))
            )
            for r in (0, 1)
        ]
        for plan in plans
    ]
    assert any(a == 0 < b or b == 0 < a for a, b in counts)
    empty = [step for step, pair in enumerate(counts) if not sum(pair)]
    assert empty
    for parallel in ("ddp", "fsdp"):
        trace = signals(base, f"tags-{parallel}")
        assert [e["step"] for e in trace.events if e["kind"] == "non_finite"] == empty
        assert trace["targets"][0].tolist() == [sum(pair) for pair in counts]


def test_our_own_bert_is_shared_out_too(base, seen, alone):
    alone("ours", implementation="stabviz", steps=6)
    assert_same_run(base, "ours-alone", "ours-fsdp")


@PARALLEL
def test_every_process_ends_with_the_same_weights_and_progress(seen, parallel):
    mine = [name for name in seen[0] if name.endswith(f"-{parallel}")]
    assert len(mine) >= len(SCENARIOS) + 2
    for name in mine:
        assert [seen[0][name][key] for key in ("progress", "weights", "failed")] == [
            seen[1][name][key] for key in ("progress", "weights", "failed")
        ], name
        shares = [process[name]["shares"] for process in seen]
        whole_model = seen[0][name.replace("fsdp", "ddp")]["shares"] if "ours" not in name else sum(shares)
        assert (sum(shares) if parallel == "fsdp" else shares[0]) == whole_model
        assert max(shares) < 0.6 * whole_model or parallel == "ddp"  # a process holds its half


@PARALLEL
def test_nan_in_one_share_is_dropped_by_all_and_named(base, seen, alone, parallel):
    alone("nan")
    trace = signals(base, f"nan-{parallel}")
    events = [e for e in trace.events if e["kind"] == "non_finite"]
    assert [e["step"] for e in events] == [POISON]
    assert events[0]["rows"] == planned(POISON)[1::2][:2]  # a micro-batch of the second process
    assert math.isnan(trace["loss_nats"][0, POISON])
    assert seen[0][f"nan-{parallel}"]["progress"]["updates"] == 12
    assert_same_run(base, "nan-alone", f"nan-{parallel}")


@PARALLEL
def test_spikes_leave_the_same_rows_out_and_rewind_alike(base, seen, alone, parallel):
    expected = alone("spike")["progress"]
    found = seen[1][f"spike-{parallel}"]["progress"]
    exact = [key for key in expected if key not in ("recent_losses", "micro_batch")]
    assert {key: found[key] for key in exact} == {key: expected[key] for key in exact}
    assert found["spikes"] == len(SPIKES)
    assert set(planned(SPIKES[0]) + planned(SPIKES[1])) <= set(found["left_out"])
    kinds = [e["kind"] for e in signals(base, f"spike-{parallel}").events]
    assert kinds == ["spike", "spike", "rewind"]
    # 37 steps, of which some raise the loss: what rounding did has grown another 30 times
    assert_same_run(base, "spike-alone", f"spike-{parallel}", tolerance=1e-3)


@PARALLEL
def test_too_many_bad_steps_end_all_processes_with_one_message(seen, parallel):
    said = [process[f"failing-{parallel}"]["failed"] for process in seen]
    assert said[0] == said[1]
    assert "2 steps in a row were not finite, up to step 4" in said[0]
    assert "step-00000000" in said[0]


@PARALLEL
def test_a_stop_in_one_process_stops_all_and_the_resume_is_exact(base, seen, parallel):
    for process in seen:
        stopped = process[f"resumed-{parallel}"]["first"]["progress"]
        assert (stopped["updates"], stopped["finished"]) == (7, "")  # the step under way was finished
        assert process[f"resumed-{parallel}"]["weights"] == process[f"straight-{parallel}"]["weights"]
    logs = [(base / f"{name}-{parallel}" / "metrics.jsonl").read_bytes() for name in ("straight", "resumed")]
    assert logs[0] == logs[1]
    (one, _), (other, _) = (
        read_checkpoint(newest_checkpoint(base / f"{name}-{parallel}" / "checkpoints")[0])
        for name in ("straight", "resumed")
    )
    assert {"model", "optimizer", "average"} == set(one) == set(other)
    for group in one:
        for name, tensor in one[group].items():
            assert torch.equal(tensor, other[group][name]), (group, name)


@PARALLEL
def test_a_checkpoint_of_two_processes_is_one_of_one_process(base, seen, parallel):
    """What was shared out is whole on disk: one process can go on with it."""
    folder = newest_checkpoint(base / f"straight-{parallel}" / "checkpoints")[0]
    training = Training(
        setup(base, ProcessGroup.join("cpu"), f"fresh-{parallel}", **RANDOM | RESUMED[parallel]),
        resume=False,
        force=False,
    )
    training.restore(folder)
    tensors, _ = read_checkpoint(folder)
    for p in training.parameters:
        assert torch.equal(p.tensor, tensors["model"][p.name])
        assert torch.equal(training.optimizer.moments(p)[1], tensors["optimizer"][f"{p.name}/second_moment"])
        assert torch.equal(training.average.averages[p.name], tensors["average"][p.name])


def test_what_one_process_finds_wrong_ends_all(seen):
    assert [process["refused"] for process in seen] == [{"refused": True}] * 2


def test_the_command_under_torchrun_writes_each_file_once(base, tmp_path):
    rows = data("classes", load_tokenizer(str(base / "model")), 120)
    words = [" ".join(WORDS[i % 3 :: 3]) for i in range(len(rows))]
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"{w},{'abc'[i % 3]}\n" for i, w in enumerate(words))
    )
    run_folder = tmp_path / "run"
    said = launched(
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "stabviz",
            "finetune",
            "--data",
            "data.csv",
            "--label",
            "label",
            "--model",
            str(base / "model"),
            "--steps",
            "4",
            "--batch",
            "8",
            "--warmup-steps",
            "1",
            "--seeds",
            "2",
            "--device",
            "cpu",
            "--parallel",
            "fsdp",
            "--no-progress",
            "--out",
            "run",
        ],
        tmp_path,
        ranks=(None,),
        timeout=300,
        code=1,  # four steps learn nothing, which is exit code 3, and torchrun makes that its own
    )
    assert "failed (exit code 3): seed 0 is no better than the majority's answer" in said
    assert said.count("best weights: ") == 1
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    for seed in (0, 1):
        assert read_metrics(run_folder / f"seed-{seed}" / "metrics.jsonl").n_steps == 4
        assert len((run_folder / f"seed-{seed}" / "timings.jsonl").read_text().splitlines()) == 4
        assert json.loads((run_folder / f"seed-{seed}" / "best" / "config.json").read_text())[
            "architectures"
        ] == ["BertForSequenceClassification"]


# ProcessGroup alone


def test_world_of_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    processes = ProcessGroup.join("cpu")
    assert (processes.rank, processes.size, processes.leads, processes.owns_group) == (0, 1, True, False)
    assert processes.table(3, 5) == [[3, 5]]
    assert processes.gather("x") == ["x"]
    assert processes.first(lambda: 7) == 7
    assert [processes.any(True), processes.any(False)] == [True, False]


def test_world_names_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, hint in [
        ("gpu", "device must be auto, cpu, cuda"),
        ("cuda:1", "got 'cuda:1', and torch sees no CUDA"),
    ]:
        with pytest.raises(ValueError, match=hint):
            ProcessGroup.join(name)
    assert ProcessGroup.join("auto").device.type == "cpu"


def test_fsdp_needs_a_list_of_layers():
    processes = ProcessGroup(rank=0, size=2, device=torch.device("cpu"), owns_group=False)
    with pytest.raises(ValueError, match="share: model must hold its layers in a ModuleList"):
        share(torch.nn.Linear(2, 2), processes, "fsdp")


def test_a_batch_smaller_than_the_processes_is_refused(base):
    processes = dataclasses.replace(ProcessGroup.join("cpu"), size=2)
    made = setup(base, processes, "small", batch=1)
    with pytest.raises(ValueError, match="batch must be at least 2, the number of processes; got 1"):
        Loader(made.rows, made.collate, made.config, processes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = ProcessGroup.join("cpu")
    found = everything(Path(sys.argv[1]), here)
    (Path(sys.argv[1]) / f"seen-{here.rank}.json").write_text(json.dumps(found))
    here.leave()
