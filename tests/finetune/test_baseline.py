"""Scores of what knows no language, beside those of a model."""

import json

import pytest

from stabviz.finetune import baseline
from stabviz.finetune.baseline import baseline_scores
from stabviz.finetune.config import DataConfig
from stabviz.finetune.data.splits import read_splits


@pytest.fixture
def splits_of(tmp_path):
    """Make splits from rows; test rows may differ from those of training and validation."""

    def make(train, test, **settings):
        for split, rows in (("train", train), ("validation", train), ("test", test)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        return read_splits(DataConfig(source=str(tmp_path), **settings))

    return make


def topic(text, label):
    return {"text": text, "label": label}


COLOURS = [topic("it is red", "warm"), topic("so red", "warm"), topic("it is blue", "cold")] * 3
COLOURS += [topic("so blue", "cold")] * 2


def test_the_majority_is_that_of_training_also_where_the_test_has_another(splits_of):
    found = baseline_scores(
        splits_of(COLOURS, [topic("red", "warm"), topic("blue", "cold")] + [COLOURS[2]] * 2)
    )
    assert found["majority"]["accuracy"] == 0.25  # warm: 6 of 11 in training, 1 of 4 here
    assert found["tf-idf + logistic regression"]["accuracy"] == 1.0
    assert found["tf-idf + logistic regression"]["macro_f1"] == 1.0


def test_a_bag_of_words_does_not_know_the_test_rows(splits_of):
    told = baseline_scores(splits_of(COLOURS, [topic("green red", "cold"), topic("green blue", "warm")]))
    assert told["tf-idf + logistic regression"]["accuracy"] == 0.0


def test_rows_without_a_word_that_comes_twice_are_said_and_cost_no_run(splits_of):
    found = baseline_scores(splits_of([topic("!", "a"), topic("?", "b")], [topic("!", "a")]))
    assert "vocabulary" in found["tf-idf + logistic regression"]["problem"]
    assert found["majority"]["accuracy"] in (0.0, 1.0)


def test_a_large_training_split_is_sampled_by_the_seed(splits_of, monkeypatch):
    monkeypatch.setattr(baseline, "MOST_ROWS", 8)
    splits = splits_of(COLOURS, COLOURS)
    assert baseline_scores(splits, 1) == baseline_scores(splits, 1)
    assert len({baseline_scores(splits, seed)["majority"]["loss_nats"] for seed in range(5)}) > 1


def test_the_word_lookup_takes_the_most_frequent_tag_and_o_for_a_new_word(splits_of):
    train = [{"text": ["Lyon", "is", "late"], "label": ["B-LOC", "O", "O"]}] * 2
    train += [{"text": ["lyon", "Ltd"], "label": ["B-ORG", "I-ORG"]}]
    test = [{"text": ["LYON", "or", "Kent"], "label": ["B-LOC", "O", "B-LOC"]}]
    found = baseline_scores(splits_of(train, test, tags="label"))
    assert list(found) == ["word lookup"]
    assert (found["word lookup"]["precision"], found["word lookup"]["recall"]) == (1.0, 0.5)


def test_pairs_several_classes_and_numbers_have_baselines_too(splits_of):
    pairs = [{"text": "is it", "other": row["text"], "label": row["label"]} for row in COLOURS]
    found = baseline_scores(splits_of(pairs, pairs, text_pair="other"))
    assert found["tf-idf + logistic regression"]["accuracy"] == 1.0
    both = [{"text": row["text"], "topics": [row["label"], "colour"]} for row in COLOURS]
    found = baseline_scores(splits_of(both, both, multi_label=("topics",)))
    assert found["tf-idf + logistic regression"]["subset_accuracy"] == 1.0
    assert found["majority"]["subset_accuracy"] == pytest.approx(6 / 11)  # warm and colour, for all
    numbers = [{"text": row["text"], "degrees": 30.0 if row["label"] == "warm" else 10.0} for row in COLOURS]
    found = baseline_scores(splits_of(numbers, numbers, regression="degrees"))
    assert found["mean"]["r2"] == pytest.approx(0.0, abs=1e-9)
    assert found["tf-idf + ridge regression"]["r2"] > 0.5
