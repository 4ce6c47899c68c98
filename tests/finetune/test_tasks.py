"""Every kind of task, through the whole loop: data, loss, resume, accumulation, precision, scores, answers.

"Reference" is transformers' own model with its own loss, `problem_type` set, on the same batch.
"""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.class_weights import class_weights
from stabviz.finetune.data.sources import DataError
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import build_model, finetune, predict, prepare
from stabviz.finetune.tasks import KINDS
from stabviz.methods.objective import MODEL_INPUTS
from stabviz.models.pretrained import load_tokenizer
from stabviz.trace.log import read_metrics
from stabviz.views.scales import unit_label

TOPICS = {"order": ["order", "late", "day"], "account": ["account", "lock", "router"], "bill": ["invoice"]}
ROWS = 240


def rows():
    """Pairs of texts with a class (rare, usual), topics (any number), and a number: all from the words."""
    rng, made = np.random.default_rng(0), []
    for _ in range(ROWS):
        topics = [topic for topic in TOPICS if rng.random() < 0.4]
        words = [word for topic in topics for word in rng.choice(TOPICS[topic], size=2)]
        first = " ".join([*words, *rng.choice(["the", "my", "is", "please"], size=3)])
        second = " ".join(rng.choice(["help", "print", "refund", "where"], size=int(rng.integers(1, 5))))
        made.append(
            {
                "first": first,
                "second": second,
                "label": "some" if topics else "none",
                "topics": topics,
                "flags": [int(topic in topics) for topic in TOPICS],
                "score": 40.0 + 10 * len(topics) + float(rng.normal()),
            }
        )
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "rows.jsonl"
    flags = [dict(zip(TOPICS, row["flags"], strict=True)) for row in rows()]
    lines = [json.dumps(row | flag) for row, flag in zip(rows(), flags, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TASKS = {
    "pairs": {"text_pair": "second", "label": "label"},
    "weighted": {"label": "label", "class_weights": "balanced"},
    "multi_label": {"text_pair": "second", "multi_label": ["topics"]},
    "weighted_multi_label": {"multi_label": ["topics"], "class_weights": "balanced"},
    "regression": {"text_pair": "second", "regression": "score"},
}
PROBLEMS = {
    "pairs": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
each_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture
def config(corpus, config_of, tmp_path):
    """Make the config of a task, with dropout, shuffling, uneven accumulation and an average of weights."""

    def make(task, name="run", **settings):
        chosen = {"data": str(corpus), "text": "first", "label": None, "max_length": 32} | TASKS[task]
        return config_of(tmp_path / name, **(chosen | {"steps": 12, "warmup_steps": 0.25} | settings))

    return make


def ready(config):
    splits = read_splits(config.data, config.run.seed)
    setup, tokenizer = prepare(config, splits, ProcessGroup.join("cpu"))
    return splits, setup, tokenizer


def a_batch(setup, rows):
    return collate([setup.rows[(0, i)] for i in rows], pad_id=0)


# The loss


@pytest.mark.parametrize("task", PROBLEMS)
@pytest.mark.parametrize("implementation", ["transformers", "stabviz"])
def test_the_loss_is_that_of_transformers_problem_type(task, implementation, config):
    _, setup, _ = ready(config(task, implementation=implementation))
    batch = a_batch(setup, range(7))
    loss, _ = setup.objective(setup.model.eval(), batch)
    reference = ready(config(task))[1].model
    assert reference.config.problem_type == PROBLEMS[task]
    reference.load_state_dict(setup.model.state_dict(), strict=False)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    expected = reference.eval()(**inputs, labels=batch["labels"]).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert "token_type_ids" in batch
    assert batch["token_type_ids"].max() == 1  # the second text is told from the first


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_torchs_weighted_mean(smoothing, config):
    splits, setup, _ = ready(config("weighted", label_smoothing=smoothing))
    weights = class_weights("balanced", splits)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=np.array(splits.train["label"][:]))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    batch = a_batch(setup, range(17))
    loss, _ = setup.objective(setup.model.eval(), batch)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    reference = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss, reference(setup.model(**inputs).logits, batch["labels"]))
    assert setup.weigh(batch) == pytest.approx(float(weights[batch["labels"]].sum()))
    assert len(set(batch["labels"].tolist())) == 2


def test_balanced_weights_of_several_classes_are_torchs_pos_weight(config):
    splits, setup, _ = ready(config("weighted_multi_label"))
    ones_C = np.sum(splits.train["label"][:], axis=0)
    weights = class_weights("balanced", splits)
    np.testing.assert_allclose(weights, (len(splits.train) - ones_C) / ones_C, rtol=1e-6)
    batch = a_batch(setup, range(7))
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=weights)
    loss, _ = setup.objective(setup.model.eval(), batch)
    torch.testing.assert_close(loss, reference(setup.model(**inputs).logits, batch["labels"]))
    assert setup.weigh(batch) == 7


def test_balanced_weights_of_tags_count_words(config_of, tmp_path, corpus):
    path = tmp_path / "tags.jsonl"
    row = {"words": ["where", "is", "Anna", "Lee"], "tags": ["O", "O", "B-PER", "I-PER"]}
    path.write_text(f"{json.dumps(row)}\n" * 20)
    settings = {"data": str(path), "label": None, "text": "words", "tags": "tags"}
    splits = read_splits(config_of(tmp_path / "run", **settings).data)
    assert class_weights("balanced", splits).tolist() == pytest.approx([4 / 6, 4 / 3, 4 / 3])


def test_weights_from_a_file_and_what_is_wrong_with_it(config, tmp_path):
    splits = ready(config("pairs"))[0]
    path = tmp_path / "weights.json"
    path.write_text('{"none": 2.5}')
    assert class_weights(str(path), splits).tolist() == [2.5, 1.0]
    assert class_weights(None, splits) is None
    for text, said in (
        ('{"nobody": 2}', "'nobody': 2"),
        ('{"none": 0}', "'none': 0"),
        ("[1, 2]", "must give classes"),
        ("{", "must be .balanced. or a JSON file"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            class_weights(str(path), splits)
    with pytest.raises(ValueError, match="got 'balance'"):
        class_weights("balance", splits)


# The loop's promises


@each_task
def test_a_resume_is_exact(task, config, go, everything, assert_equal_to_the_bit):
    go(config(task, "whole"))
    parts = config(task, "parts")
    go(parts.replace(stop_after=7))
    assert go(parts, resume=True).finished == "all steps"
    assert_equal_to_the_bit(parts.run.out, everything(config(task, "whole").run.out))


def test_a_resume_with_other_class_weights_is_refused(config, go, tmp_path):
    (tmp_path / "weights.json").write_text('{"none": 2.0}')
    weighted = config("weighted", class_weights=str(tmp_path / "weights.json"))
    go(weighted.replace(stop_after=3))
    (tmp_path / "weights.json").write_text('{"none": 3.0}')
    with pytest.raises(ValueError, match="the data are others"):
        go(weighted, resume=True)


@each_task
def test_accumulation_is_exact(task, config, go):
    """Micro-batches of 8, 3 and 1 rows: the same losses, norms and accuracy, step by step."""
    traces = []
    # no buckets: rows of a length are of a class here, and in a batch of one class no weight shows
    steady = {"dropout": 0.0, "word_dropout": 0.0, "eps": 1e-5, "bucket": False}
    for size in (8, 3, 1):
        one = config(task, f"micro-{size}", micro_batch=size, **steady)
        go(one)
        traces.append(read_metrics(one.run.out / "metrics.jsonl"))
    for trace in traces[1:]:
        for name in {"loss_nats", "grad_norm_preclip", "accuracy", "log_z"} & set(trace.signals):
            np.testing.assert_allclose(trace[name], traces[0][name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert ("accuracy" in traces[0].signals) == (task in ("pairs", "weighted"))
    assert (traces[0]["targets"] == 8).all()


@each_task
def test_bf16_follows_fp32(task, config, go):
    losses = []
    for precision in ("fp32", "bf16"):
        one = config(task, precision, precision=precision, dropout=0.0, word_dropout=0.0)
        go(one)
        losses.append(read_metrics(one.run.out / "metrics.jsonl")["loss_nats"][0])
    # bf16 keeps 8 bits: some 0.4 % of a logit, which 12 updates carry on
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05, atol=0.02)
    assert not np.array_equal(*losses)


# Scores, best weights, answers


@each_task
def test_a_task_is_learnt_scored_and_answered(task, config):
    steady = {"dropout": 0.0, "word_dropout": 0.0, "ema_decay": 0.0, "micro_batch": None, "save_every": 0}
    long = {"steps": 150, "batch": 32, "warmup_steps": 10, "evaluate_every": 50, "signals_every": 50}
    outcome = finetune(config(task, **steady, **long))
    scores = outcome.scores
    assert scores["failed"] is False
    name = {"pairs": "accuracy", "weighted": "accuracy", "regression": "pearson"}.get(task, "micro_f1")
    assert (scores["score_name"], scores["score"]) == (name, scores[name])
    assert scores["score"] > 0.8
    test = read_splits(outcome.config.data).test
    pairs = test["text_pair"][:] if "text_pair" in TASKS[task] else []
    said = predict(outcome.config.run.out, test["text"][:], pairs=pairs)
    if task == "regression":
        assert [one["score"] for one in said] == pytest.approx(scores["predictions"], abs=1e-3)
        assert scores["rmse"] < 5  # of numbers from 40 to 70
        assert outcome.trace.config["loss_unit"] == ""  # a squared error is no nats
        assert unit_label(outcome.trace, "loss_nats") == "loss"
        assert "(number - mean) / deviation" in (outcome.config.run.out / "best" / "README.md").read_text()
    elif name == "accuracy":
        assert [one["label"] for one in said] == [scores["labels"][i] for i in scores["predictions"]]
    else:
        assert [one["labels"] for one in said] == scores["predictions"]
        assert all(set(one["probabilities"]) == set(TOPICS) for one in said)


@pytest.mark.parametrize("implementation", ["transformers", "stabviz"])
@pytest.mark.parametrize("task", PROBLEMS)
def test_the_best_weights_are_a_model_that_transformers_knows(task, implementation, config):
    from transformers import AutoModelForSequenceClassification

    out = finetune(config(task, implementation=implementation, steps=2, warmup_steps=0)).config.run.out
    model = AutoModelForSequenceClassification.from_pretrained(out / "best")
    assert model.config.problem_type == PROBLEMS[task]
    assert len(model.config.id2label) == {"pairs": 2, "multi_label": 3, "regression": 1}[task]


def test_a_pair_is_asked_for_where_the_model_was_taught_pairs(config):
    out = finetune(config("pairs", steps=1, warmup_steps=0)).config.run.out
    with pytest.raises(ValueError, match="pairs must be 1 second texts for 1 texts; got 0"):
        predict(out, ["my order"])
    with pytest.raises(ValueError, match="pairs must not be empty; got text 1"):
        predict(out, ["my order"], pairs=[" "])
    out = finetune(config("weighted", "single", steps=1, warmup_steps=0)).config.run.out
    with pytest.raises(ValueError, match="pairs must be 0 second texts for 1 texts; got 1"):
        predict(out, ["my order"], pairs=["help"])


@pytest.mark.parametrize("metric", ["mse", "loss"])
def test_where_less_is_more_the_lowest_is_kept(metric, config, go):
    """A large rate makes the error rise and fall; best/ is of the evaluation at which it was lowest."""
    one = config("regression", metric=metric, evaluate_every=2, lr=3e-2, patience=None, ema_decay=0.0)
    outcome = finetune(one)
    logged = outcome.trace["validation_score"][0]
    measured = np.flatnonzero(np.isfinite(logged))
    assert (logged[measured] <= 0).all()  # negated: a score is high where it is good
    values = -logged[measured]
    assert len(set(values)) > 2
    assert outcome.progress.best_at == measured[np.argmin(values)] + 1
    assert values[-1] != values.min() or values[0] != values.min()
    assert outcome.scores["score"] == outcome.scores[metric] > 0


def test_a_metric_chooses_what_patience_follows(config):
    """The loss is lowest at another time than accuracy is highest: at least one choice differs."""
    best = {}
    for metric in (None, "loss_nats", "matthews"):
        one = config("pairs", str(metric), metric=metric, evaluate_every=1, lr=1e-2, steps=9)
        outcome = finetune(one)
        best[metric] = outcome.progress.best_at
        assert outcome.scores["score_name"] == (metric or "accuracy")
    assert len(set(best.values())) > 1


@pytest.mark.parametrize(
    ("task", "metric", "said"),
    [
        ("pairs", "acuracy", "did you mean 'accuracy'"),
        ("regression", "f1", "metric must be one of pearson, spearman, r2"),
        ("multi_label", "accuracy", "micro_f1"),
    ],
)
def test_a_metric_of_another_kind_is_refused_before_anything_is_written(task, metric, said, config):
    one = config(task, metric=metric)
    with pytest.raises(ValueError, match=said):
        finetune(one)
    assert not one.run.out.exists()


def test_f1_needs_two_classes():
    assert KINDS["classes"].metric("f1", ("a", "b")) == "f1"
    with pytest.raises(ValueError, match="metric must be one of"):
        KINDS["classes"].metric("f1", ("a", "b", "c"))
    assert KINDS["tags"].metric(None, ("O", "B-X", "I-X")) == "f1"


# Epochs


def test_epochs_set_the_steps_also_after_a_resume(config):
    one = config("pairs", epochs=0.55, warmup_steps=0.5, evaluate_every=50)
    per_epoch = 192 // 8  # of 240 rows 24 are set aside for validation and for test
    outcome = finetune(one.replace(stop_after=4))
    assert not outcome.finished
    outcome = finetune(one, resume=True)
    assert outcome.trace.n_steps == math.ceil(0.55 * per_epoch) == 14
    assert outcome.config.train.steps == 14
    kept = json.loads((one.run.out / "config.json").read_text())["config"]
    assert (kept["steps"], kept["epochs"]) == (14, 0.55)
    peak = outcome.trace["lr"][0].argmax()
    assert peak == 6  # warmed up over half of the steps


# Data


def test_three_ways_to_write_several_classes_are_one(corpus, tmp_path):
    lists = read_splits(FinetuneConfig.of(data=str(corpus), text="first", multi_label=["topics"]).data)
    flags = read_splits(FinetuneConfig.of(data=str(corpus), text="first", multi_label=list(TOPICS)).data)
    path = tmp_path / "rows.csv"
    lines = [f'"{row["first"]}","{"; ".join(row["topics"])}"' for row in rows()]
    path.write_text("\n".join(["first,topics", *lines]) + "\n")
    texts = read_splits(FinetuneConfig.of(data=str(path), text="first", multi_label=["topics"]).data)
    assert (lists.labels, flags.labels) == (("account", "bill", "order"), ("order", "account", "bill"))
    by_row = {}
    for splits in (lists, flags, texts):
        for split in (splits.train, splits.validation, splits.test):
            for row, label in zip(split["row"][:], split["label"][:], strict=True):
                names = {n for n, flag in zip(splits.labels, label, strict=True) if flag}
                assert names == by_row.setdefault(row, names) == set(rows()[row]["topics"])


@pytest.mark.parametrize(
    ("cell", "settings", "said"),
    [
        ({"topics": None}, {"multi_label": ["topics"]}, "is null"),
        ({"topics": [["a"]]}, {"multi_label": ["topics"]}, "must be text or a whole number"),
        ({"topics": 3}, {"multi_label": ["topics"]}, "must be a list of classes; got 3"),
        ({"bill": 2}, {"multi_label": ["order", "bill"]}, "'bill' must be 0 or 1; got 2"),
        ({"score": "warm"}, {"regression": "score"}, "must be a finite number; got 'warm'"),
        ({"score": "nan"}, {"regression": "score"}, "must be a finite number; got 'nan'"),
        ({"score": True}, {"regression": "score"}, "must be a finite number; got True"),
        ({"score": None}, {"regression": "score"}, "is null"),
        ({"second": " "}, {"text_pair": "second"}, "column 'second': is an empty text"),
    ],
)
def test_a_bad_cell_is_named(cell, settings, said, tmp_path):
    path = tmp_path / "rows.jsonl"
    flags = {"order": 1, "bill": 0}
    lines = [json.dumps(row | flags | (cell if i == 5 else {})) for i, row in enumerate(rows())]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=said) as caught:
        read_splits(FinetuneConfig.of(data=str(path), text="first", **settings).data)
    assert "line 6" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        ({"score": 3}, {"regression": "score"}, "at least 2 different numbers; got 3 in every row"),
        ({"topics": []}, {"multi_label": ["topics"]}, "has no class in any training row"),
    ],
)
def test_labels_that_teach_nothing_are_refused(values, settings, said, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row | values) for row in rows()) + "\n")
    with pytest.raises(DataError, match=said):
        read_splits(FinetuneConfig.of(data=str(path), text="first", **settings).data)


def test_a_class_that_training_does_not_know_is_named(tmp_path):
    for split, topics in (("train", ["a", "b"]), ("test", ["a", "c"])):
        row = {"text": "where is it", "topics": topics}
        (tmp_path / f"{split}.jsonl").write_text("\n".join([json.dumps(row)] * 20))
    with pytest.raises(DataError, match="test.jsonl, line 1, column 'topics': unknown label 'c'"):
        read_splits(FinetuneConfig.of(data=str(tmp_path), multi_label=["topics"]).data)


def test_numbers_are_learnt_with_mean_and_deviation_taken_out(config):
    splits, setup, _ = ready(config("regression"))
    numbers = np.array(splits.train["label"][:])
    assert splits.scale == pytest.approx((numbers.mean(), numbers.std()))
    learnt = [float(setup.rows[(0, i)]["labels"]) for i in range(len(numbers))]
    assert (np.mean(learnt), np.std(learnt)) == pytest.approx((0, 1), abs=1e-5)


def test_a_vector_of_as_many_classes_as_word_pieces_is_not_cut(config):
    """(B, C) labels beside (B, L) word pieces with C = L: padding is trimmed, classes are not."""
    from stabviz.finetune.data.batches import split_batch

    rows = [
        {"input_ids": [2, 5, 3], "labels": np.ones(5, np.float32), "row": 0},
        {"input_ids": [2, 5, 6, 7, 3], "labels": np.ones(5, np.float32), "row": 1},
    ]
    first = split_batch(collate(rows, pad_id=0), 1)[0]
    assert (first["input_ids"].shape, first["labels"].shape) == ((1, 3), (1, 5))
    assert first["labels"].dtype == torch.float32


# Where splits and models come from


def test_splits_are_taken_by_name(tmp_path):
    import datasets

    def part(word, n):
        return datasets.Dataset.from_list([{"text": f"{word} {i}", "label": "ab"[i % 2]} for i in range(n)])

    names = {"train": 40, "validation_matched": 11, "validation_mismatched": 7, "test": 5}
    parts = {name: part(name, n) for name, n in names.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "mnli"))

    def sizes(**settings):
        found = read_splits(FinetuneConfig.of(data=str(tmp_path / "mnli"), **settings).data)
        return len(found.train), len(found.validation), len(found.test)

    assert sizes() == (40, 11, 5)
    named = {"split_validation": "validation_mismatched", "split_test": "validation_matched"}
    assert sizes(**named) == (40, 7, 11)
    assert sizes(split_test="none") == (36, 11, 4)
    assert sizes(split_train="test", split_test="train") == (5, 11, 40)
    with pytest.raises(DataError, match="has no split 'dev' for test; it has train, validation_matched"):
        sizes(split_test="dev")


def test_files_of_a_folder_are_splits_by_name_and_one_file_has_none(tmp_path):
    row = '{"text": "where", "label": "%s"}\n'
    for name in ("old", "new", "dev"):
        (tmp_path / f"{name}.jsonl").write_text((row % name) * 5 + (row % "dev") * 5)
    chosen = FinetuneConfig.of(data=str(tmp_path), split_train="old", split_test="none").data
    splits = read_splits(chosen)
    assert (splits.labels, len(splits.validation)) == (("dev", "old"), 10)
    with pytest.raises(DataError, match="is one file, whose rows are all training; name no splits"):
        read_splits(FinetuneConfig.of(data=str(tmp_path / "old.jsonl"), split_test="dev").data)


REMOTE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_it_is_trusted(tiny_bert_folder, config, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny_bert_folder, folder)
    (folder / "own.py").write_text(REMOTE)
    described = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    described |= {"model_type": "own-bert", "auto_map": code}
    (folder / "config.json").write_text(json.dumps(described))
    one = config("pairs", model=str(folder), steps=1, warmup_steps=0)
    with pytest.raises(ValueError, match="trust_remote_code") as caught:
        finetune(one)
    assert "\n" not in str(caught.value)
    outcome = finetune(one.replace(trust_remote_code=True))
    assert outcome.scores is not None
    said = predict(one.run.out, ["my order"], pairs=["help"], trust_remote_code=True)
    assert said[0]["label"] in ("some", "none")


def test_a_revision_is_asked_of_the_hub(monkeypatch):
    asked = {}

    class Family:
        @staticmethod
        def from_pretrained(name, **options):
            asked[name] = options
            raise OSError("no network")

    monkeypatch.setattr("stabviz.models.hub.why_unreachable", lambda: None)
    monkeypatch.setattr("stabviz.models.pretrained.AutoTokenizer", Family)
    monkeypatch.setattr("stabviz.models.pretrained.AutoConfig", Family)
    with pytest.raises(ValueError, match="no network"):
        load_tokenizer("someone/model", revision="v2")
    assert asked["someone/model"] == {"revision": "v2", "trust_remote_code": False}
    config = FinetuneConfig.of(model="other/model", revision="v3")
    with pytest.raises(ValueError, match="no network"):
        build_model(config, "classes", ("a", "b"), type("Tokenizer", (), {"pad_token_id": 0}))
    assert asked["other/model"] == {"revision": "v3", "trust_remote_code": False}


def test_a_revision_of_data_is_asked_of_the_hub(monkeypatch):
    import datasets

    asked = []

    def load(*names, **options):
        asked.append((names, options))
        raise OSError("no network")

    monkeypatch.setattr("stabviz.models.hub.why_unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="no network"):
        read_splits(FinetuneConfig.of(data="glue", data_config="mnli", data_revision="abc").data)
    assert asked == [(("glue", "mnli"), {"revision": "abc"})]
