"""Splits: columns, labels, made splits, noise; a row that does not hold what it should is named."""

import json

import pytest

from stabviz.finetune.config import DataConfig, FinetuneConfig
from stabviz.finetune.data.sources import BadRows
from stabviz.finetune.data.splits import DataError, read_rows, read_splits

SPLITS = ("train", "validation", "test")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path, **settings):
    config = FinetuneConfig.of(data=str(path), **settings)
    return read_splits(config.data, config.run.seed)


def classes(n=60, label=lambda i: "abc"[i % 3]):
    return [{"text": f"message {i}", "label": label(i)} for i in range(n)]


def tagged(n=40):
    return [
        {"words": ["Robin", "of", "North", "Tarn", str(i)], "ner": ["B-PER", "O", "B-LOC", "I-LOC", "O"]}
        for i in range(n)
    ]


def test_support_desk_reads_intent_sentiment_and_tags():
    intent, sentiment, tags = (
        read_splits(DataConfig(**chosen)) for chosen in ({}, {"label": "sentiment"}, {"tags": "tags"})
    )
    assert [len(getattr(intent, split)) for split in SPLITS] == [3600, 600, 600]
    assert len(intent.labels) == 10
    assert sentiment.labels == ("negative", "neutral", "positive")
    assert tags.labels == (
        "O",
        "B-LOC",
        "B-ORG",
        "B-PER",
        "B-PRODUCT",
        "I-LOC",
        "I-ORG",
        "I-PER",
        "I-PRODUCT",
    )
    assert tags.kind == "tags"
    assert set(tags.train.column_names) == {"row", "words", "tags"}
    assert set(intent.train.column_names) == {"row", "text", "label"}
    assert len({intent.fingerprint, sentiment.fingerprint, tags.fingerprint}) == 3
    assert intent.skipped == []


def test_support_desk_outside_a_clone_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("stabviz.finetune.data.splits.DATA", tmp_path)
    with pytest.raises(DataError, match="the corpus is in the repository, not in the installed package"):
        read_splits(DataConfig())


def test_docstrings_are_classified_by_package():
    splits = read_splits(DataConfig(source="docstrings"))
    assert {"asyncio", "email", "logging", "xml"} <= set(splits.labels)
    assert len(splits.train) > 1000
    assert min(len(splits.validation), len(splits.test)) > 100
    with pytest.raises(DataError, match="docstrings have classes, no tags"):
        read_splits(DataConfig(source="docstrings", tags="tags"))


BAD_CLASSES = {
    "empty": ({"text": " \n ", "label": "a"}, "text", "is an empty text"),
    "null-text": ({"text": None, "label": "a"}, "text", "is null"),
    "no-text": ({"label": "a"}, "text", "is null"),
    "number": ({"text": 7, "label": "a"}, "text", "must be text; got 7"),
    "null-label": ({"text": "x", "label": None}, "label", "is null"),
    "empty-label": ({"text": "x", "label": ""}, "label", "is an empty label"),
    "float-label": ({"text": "x", "label": 1.5}, "label", "must be text or a whole number; got 1.5. Number"),
}
BAD_TAGS = {
    "ragged": ({"words": ["a", "b"], "ner": ["O"]}, "ner", "has 1 tags for 2 words"),
    "no-bio": ({"words": ["a"], "ner": ["PER"]}, "ner", "tag 0 must be O, B-TYPE or I-TYPE; got 'PER'"),
    "no-type": ({"words": ["a"], "ner": ["B-"]}, "ner", "tag 0 must be O, B-TYPE or I-TYPE; got 'B-'"),
    "number": ({"words": ["a"], "ner": [3]}, "ner", "tag 0 must be O, B-TYPE or I-TYPE; got 3"),
    "null-tags": ({"words": ["a"], "ner": None}, "ner", "is null"),
    "no-words": ({"words": [], "ner": []}, "words", "is an empty text"),
    "empty-word": (
        {"words": ["a", " "], "ner": ["O", "O"]},
        "words",
        "word 1 must be text that is not empty; got ' ",
    ),
    "null-word": (
        {"words": ["a", None], "ner": ["O", "O"]},
        "words",
        "word 1 must be text that is not empty; got N",
    ),
}
BAD = {f"classes-{name}": (classes(), {}, *case) for name, case in BAD_CLASSES.items()} | {
    f"tags-{name}": (tagged(), {"text": "words", "tags": "ner"}, *case) for name, case in BAD_TAGS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_stops_with_file_line_and_column(name, tmp_path):
    good, settings, bad, column, problem = BAD[name]
    path = write(tmp_path / "rows.jsonl", [*good[:11], bad, *good[11:]])
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert str(caught.value).startswith(f"read_splits: {path}, line 12, column {column!r}: {problem}")
    assert "\n" not in str(caught.value)


def test_all_bad_rows_are_named_at_once_the_first_twenty_of_many(tmp_path):
    rows = classes(60)
    for i in range(0, 50, 2):
        rows[i] = {"text": "", "label": "a"}
    path = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "x", "label": "z"}])
    with pytest.raises(BadRows) as caught:
        read(tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "read_splits: 26 rows are bad (--bad-rows skip leaves them out); the first 20:"
    )  # 25 of training, 1 of test
    assert [line.strip() for line in lines] == [
        f"{path}, line {i + 1}, column 'text': is an empty text" for i in range(0, 40, 2)
    ]
    write(path, rows[1::2])
    with pytest.raises(DataError, match="line 1, column 'label': unknown label 'z'"):
        read(tmp_path)
    write(path, [{"text": "", "label": "a"}] * 2)  # what is wrong is the rows, not that none is left
    with pytest.raises(BadRows, match="3 rows are bad|2 rows are bad"):
        read(tmp_path)


def test_an_i_tag_that_begins_an_entity_is_read_as_conlleval_does_and_said(tmp_path, caplog):
    rows = tagged(20)
    rows[3] = {"words": ["a", "b", "c", "d", "e"], "ner": ["O", "I-PER", "I-PER", "I-LOC", "B-LOC"]}
    splits = read(write(tmp_path / "t.jsonl", rows), text="words", tags="ner", test_share=0.2)
    (warning,) = splits.warnings
    place = f"{tmp_path / 't.jsonl'}: 2 I- tags begin an entity, and are read as B-, as conlleval does"
    assert warning == f"{place}; the first: line 4, tag 1, I-PER after O"
    assert warning in caplog.text
    found = {
        row["row"]: [splits.labels[tag] for tag in row["tags"]]
        for split in SPLITS
        for row in getattr(splits, split)
    }
    assert found[3] == ["O", "B-PER", "I-PER", "B-LOC", "B-LOC"]
    assert found[4] == rows[4]["ner"]


def test_a_class_that_may_be_misspelt_is_said_and_a_rare_one(tmp_path, caplog):
    names = ["money"] * 40 + ["delay"] * 40 + ["mony", "Delay", "odd", "1", "1"]
    path = write(tmp_path / "t.jsonl", [{"text": f"m {i}", "label": name} for i, name in enumerate(names)])
    warnings = read(path).warnings
    assert warnings == [
        "class 'mony' has 1 row of training; did you mean 'money'?",
        "class 'Delay' has 1 row of training; did you mean 'delay'?",
        "classes with fewer than 5 rows of training: 'odd' 1, '1' 2",
        "classes 'delay' and 'Delay' differ in case, spaces or signs alone",
    ]
    assert all(warning in caplog.text for warning in warnings)
    assert read(write(tmp_path / "u.jsonl", classes(60))).warnings == []
    assert read_splits(DataConfig()).warnings == []


def test_numbers_with_decimals_are_no_classes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"m,{i / 7:.2f}\n" for i in range(60)))
    message = (
        "column 'label': holds numbers with decimals, 0.00, 0.14, 0.29: they are no classes. .*--regression"
    )
    with pytest.raises(DataError, match=message):
        read(path)
    path.write_text("text,label\n" + "".join(f"m {i},{'1.5' if i % 2 else 'one'}\n" for i in range(60)))
    assert read(path).labels == ("1.5", "one")  # a name among names


def test_rows_to_score_are_all_of_a_file_or_a_split_of_a_folder(tmp_path):
    labels = ("a", "b", "c")
    path = write(
        tmp_path / "rows.jsonl", classes(50, label=lambda i: "ac"[i % 2])
    )  # not every class is there
    found = read_rows(DataConfig(source=str(path)), labels)
    assert (len(found.test), len(found.train), found.labels) == (50, 0, labels)
    assert list(found.test["label"])[:3] == [0, 2, 0]
    with pytest.raises(DataError, match="is one file without splits, scored as a whole; leave out 'test'"):
        read_rows(DataConfig(source=str(path)), labels, split="test")
    with pytest.raises(DataError, match="line 1, column 'label': unknown label 'a'"):
        read_rows(DataConfig(source=str(path)), ("b", "c"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", classes(30))
    with pytest.raises(DataError, match="has no test split; it has train"):
        read_rows(DataConfig(source=str(folder)), labels)
    assert len(read_rows(DataConfig(source=str(folder)), labels, split="train").test) == 30


@pytest.mark.parametrize("name", BAD)
def test_bad_row_is_left_out_counted_and_reported_when_asked_for(name, tmp_path):
    good, settings, bad, column, problem = BAD[name]
    path = write(tmp_path / "rows.jsonl", [*good[:11], bad, *good[11:]])
    splits = read(path, bad_rows="skip", **settings)
    (skipped,) = splits.skipped
    assert (skipped["file"], skipped["row"], skipped["column"]) == (str(path), "line 12", column)
    assert skipped["problem"].startswith(problem)
    found = sorted(row for split in SPLITS for row in getattr(splits, split)["row"])
    assert found == [i for i in range(len(good) + 1) if i != 11]  # positions count the bad row


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unknown_label_in_validation_or_test_is_named_with_the_near_one(split, tmp_path):
    rows = classes(label=lambda i: ["refund", "delivery"][i % 2])
    for name in SPLITS:
        write(tmp_path / f"{name}.jsonl", rows)
    write(tmp_path / f"{split}.jsonl", [*rows[:4], {"text": "x", "label": "refnud"}])
    message = rf"{split}\.jsonl, line 5, column 'label': unknown label 'refnud'; did you mean 'refund'\?"
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    splits = read(tmp_path, bad_rows="skip")
    assert len(splits.skipped) == 1
    assert len(getattr(splits, split)) == 4
    assert splits.labels == ("delivery", "refund")


def test_unknown_entity_type_in_test_is_named(tmp_path):
    write(tmp_path / "train.jsonl", tagged())
    write(tmp_path / "test.jsonl", [{"words": ["x"], "ner": ["B-ORG"]}])
    with pytest.raises(DataError, match=r"test\.jsonl, line 1, column 'ner': unknown label 'B-ORG'"):
        read(tmp_path, text="words", tags="ner")


def test_missing_column_suggests_the_near_one(tmp_path):
    path = write(tmp_path / "rows.jsonl", classes())
    with pytest.raises(
        DataError, match="column 'txt': is missing; did you mean 'text'. There are text, label"
    ):
        read(path, text="txt")
    with pytest.raises(DataError, match="column 'kind': is missing; There are text, label"):
        read(path, label="kind")


def test_one_class_and_only_o_are_refused(tmp_path):
    with pytest.raises(DataError, match="column 'label': must have at least 2 classes; got .'a'."):
        read(write(tmp_path / "one.jsonl", classes(label=lambda i: "a")))
    rows = [{"words": ["x", "y"], "ner": ["O", "O"]}] * 20
    with pytest.raises(DataError, match="column 'ner': has no entity in training, only O"):
        read(write(tmp_path / "o.jsonl", rows), text="words", tags="ner")
    with pytest.raises(DataError, match="no training row is left"):
        read(write(tmp_path / "none.jsonl", [{"text": "", "label": "a"}]), bad_rows="skip")


def test_number_labels_are_in_the_order_of_numbers(tmp_path):
    splits = read(write(tmp_path / "n.jsonl", classes(60, label=lambda i: i % 12)))
    assert splits.labels == tuple(str(i) for i in range(12))
    assert splits.train[0]["label"] == splits.train[0]["row"] % 12


def test_words_and_tags_may_be_text_split_at_spaces(tmp_path):
    rows = [{"text": "Robin of North Tarn", "ner": "B-PER O B-LOC I-LOC"}] * 20
    splits = read(write(tmp_path / "t.jsonl", rows), tags="ner")
    assert splits.labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")  # I-PER too: a test split may have it
    assert splits.train[0]["words"] == ["Robin", "of", "North", "Tarn"]
    assert splits.train[0]["tags"] == [2, 0, 1, 3]


def test_made_splits_are_stratified_disjoint_and_by_seed(tmp_path):
    path = write(tmp_path / "rows.jsonl", classes(1000, label=lambda i: "aaaaaaabbc"[i % 10]))
    splits = read(path, validation_share=0.2, test_share=0.1)
    assert [len(getattr(splits, split)) for split in SPLITS] == [700, 200, 100]
    rows = [row for split in SPLITS for row in getattr(splits, split)["row"]]
    assert sorted(rows) == list(range(1000))
    for split, size in zip(SPLITS, (700, 200, 100), strict=True):
        counts = [list(getattr(splits, split)["label"]).count(i) for i in range(3)]
        assert counts == pytest.approx([0.7 * size, 0.2 * size, 0.1 * size], abs=2)  # chance alone: about 4
    assert read(path, validation_share=0.2, test_share=0.1).fingerprint == splits.fingerprint
    other = read(path, validation_share=0.2, test_share=0.1, seed=1)
    assert set(other.test["row"]) != set(splits.test["row"])


def test_made_splits_leave_a_rare_class_in_training(tmp_path):
    path = write(tmp_path / "rows.jsonl", classes(40, label=lambda i: "Rare" if i == 3 else "ab"[i % 2]))
    for seed in range(8):
        assert 3 in read(path, seed=seed).train["row"]


def test_only_the_missing_split_is_made(tmp_path):
    write(tmp_path / "train.jsonl", classes(100))
    write(tmp_path / "test.jsonl", classes(7))
    splits = read(tmp_path)
    assert [len(getattr(splits, split)) for split in SPLITS] == [90, 10, 7]
    with pytest.raises(
        DataError, match="no validation split and validation_share = 0.0 of 100 rows makes none"
    ):
        read(tmp_path, validation_share=0.0)


def test_label_noise_changes_its_exact_share_of_training_labels_alone(tmp_path):
    path = write(tmp_path / "rows.jsonl", classes(300))
    clean, noisy, other = read(path), read(path, label_noise=0.25), read(path, label_noise=0.25)
    changed = [(a, b) for a, b in zip(clean.train["label"], noisy.train["label"], strict=True) if a != b]
    assert len(changed) == round(0.25 * len(clean.train)) == 60
    assert len(set(changed)) == 6  # every class turns into every other
    for split in ("validation", "test"):
        assert list(getattr(noisy, split)["label"]) == list(getattr(clean, split)["label"])
    assert noisy.fingerprint == other.fingerprint != clean.fingerprint


def test_label_noise_of_tags_gives_whole_entities_another_type(tmp_path):
    path = write(tmp_path / "rows.jsonl", tagged(100))
    settings = {"text": "words", "tags": "ner"}
    clean, noisy = read(path, **settings), read(path, label_noise=0.3, **settings)
    before, after = (
        [[clean.labels[tag] for tag in tags] for tags in splits.train["tags"]] for splits in (clean, noisy)
    )
    changed = sum(a[i] != b[i] for a, b in zip(before, after, strict=True) for i in (0, 2))
    assert changed == round(0.3 * 2 * len(clean.train))
    for tags in after:
        assert tags[3] == "I-" + tags[2][2:]
        assert (tags[1], tags[4]) == ("O", "O")


def test_max_train_rows_are_nested_and_keep_validation_and_test(tmp_path):
    path = write(tmp_path / "rows.jsonl", classes(200))
    few, more, all_of_them = (read(path, max_train_rows=n) for n in (20, 50, 10_000))
    assert (len(few.train), len(more.train), len(all_of_them.train)) == (20, 50, 160)
    assert set(few.train["row"]) < set(more.train["row"])
    assert list(few.test["row"]) == list(all_of_them.test["row"])
    assert few.fingerprint != more.fingerprint


def test_fingerprint_tells_one_changed_letter(tmp_path):
    rows = classes(50)
    first = read(write(tmp_path / "a.jsonl", rows)).fingerprint
    rows[17]["text"] += "!"
    assert read(write(tmp_path / "b.jsonl", rows)).fingerprint != first
