"""Files line by line: what is broken is named by file, line and column, or left out and counted when asked
for."""

import json

import datasets
import pytest

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.sources import DataError, split_of
from stabviz.finetune.data.splits import read_splits

GOOD = [{"text": f"message {i} of some words", "label": "abc"[i % 3]} for i in range(30)]
SPAM = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["spam", "ham"])}
)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **settings):
    config = FinetuneConfig.of(data=str(path), **settings)
    return read_splits(config.data, config.run.seed)


def rows_of(splits):
    return sum(len(part) for part in (splits.train, splits.validation, splits.test))


BROKEN = {
    # name: (file, content, what the one line of the error says after the folder)
    "broken-json": (
        "t.jsonl",
        jsonl(GOOD[:6]) + '{"text": "a", "label"\n' + jsonl(GOOD[6:]),
        r"t\.jsonl, line 7: is broken JSON \(Expecting ':' delimiter at character 23\)",
    ),
    "not-an-object": (
        "t.jsonl",
        jsonl(GOOD[:2]) + '["a", "b"]\n' + jsonl(GOOD[2:]),
        r"t\.jsonl, line 3: must be a JSON object; got '\[\"a\", \"b\"\]'",
    ),
    "latin-1-in-jsonl": (
        "t.jsonl",
        jsonl(GOOD[:4]).encode()
        + '{"text": "ein Café", "label": "a"}\n'.encode("latin-1")
        + jsonl(GOOD[4:]).encode(),
        r"t\.jsonl, line 5: is not UTF-8: byte 0xe9 after .*ein Caf",
    ),
    "latin-1-in-csv": (
        "t.csv",
        b"text,label\ngood words,a\nein Caf\xe9,b\n" + b"other,b\nmore,a\n" * 12,
        r"t\.csv, line 3, column 'text': is not UTF-8: byte 0xe9 after 'ein Caf'",
    ),
    "too-many-fields": (
        "t.csv",
        'text,label\n"two\nlines, one field",a\nno quotes, here,b\n' + "x,a\ny,b\n" * 12,
        r"t\.csv, line 4: has 3 fields where the header has 2",
    ),
    "bad-quote": (
        "t.csv",
        'text,label\nx,a\n"half" a quote,b\n' + "x,a\ny,b\n" * 12,
        r"t\.csv, line 3: is broken CSV",
    ),
    "list-of-json": (
        "t.json",
        json.dumps([*GOOD[:8], 5, *GOOD[8:]]),
        r"t\.json, row 8: must be a JSON object; got 5",
    ),
    "half-a-character": (
        "t.jsonl",
        jsonl(GOOD) + '{"text": "half \\ud83d", "label": "a"}\n',
        r"t\.jsonl, line 31, column 'text': holds half a character",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_is_named_in_one_line(name, tmp_path):
    file, content, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / file, content))
    assert "\n" not in str(caught.value)
    assert caught.value.file == str(tmp_path / file)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_is_left_out_and_counted_when_asked_for(name, tmp_path, caplog):
    file, content, _ = BROKEN[name]
    splits = read(write(tmp_path / file, content), bad_rows="skip")
    assert len(splits.skipped) == 1
    assert splits.skipped[0].keys() == {"file", "row", "column", "problem"}
    assert rows_of(splits) >= 24
    assert "1 bad rows left out" in caplog.text


FATAL = {
    "utf-16": ("t.csv", "text,label\nx,a\n".encode("utf-16"), r"line 1: is UTF-16; save the file as UTF-8"),
    "open-quote": (
        "t.csv",
        'text,label\nx,a\n"never closed,b\n' + "x,a\n" * 9,
        r"line 3: opens a quote that is never closed",
    ),
    "doubled-column": ("t.csv", "text,text\nx,a\n", r"line 1: names a column twice"),
    "empty": ("t.jsonl", "\n\n", r"t\.jsonl: holds no rows"),
    "header-alone": ("t.csv", "text,label\n", r"t\.csv: holds no rows"),
    "broken-list": ("t.json", '[{"text": "x"},\n{"text": }]', r"t\.json, line 2: is broken JSON"),
    "not-parquet": ("t.parquet", "PAR1 no", r"t\.parquet: is not a readable Parquet file"),
    "excel": ("t.xlsx", "x", r"t\.xlsx: cannot read '\.xlsx'; use one of \.csv"),
}


@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
@pytest.mark.parametrize("name", FATAL)
def test_a_file_that_cannot_be_read_in_parts_always_stops(name, bad_rows, tmp_path):
    file, content, message = FATAL[name]
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / file, content), bad_rows=bad_rows)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read(tmp_path / "gone.csv")


def test_an_unknown_id_says_what_it_could_have_been():
    with pytest.raises(
        DataError, match="nothing-of-this-name: is neither a local file or folder nor a data set"
    ):
        read("nobody/nothing-of-this-name")


def test_csv_tsv_json_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [*GOOD, {"text": 'a "quoted", comma\nand a second line, Zoë', "label": "a"}]
    quoted = ['"' + row["text"].replace('"', '""') + '"' for row in rows]
    files = [
        write(tmp_path / "t.jsonl", "\ufeff" + jsonl(rows)),
        write(tmp_path / "t.json", json.dumps(rows, ensure_ascii=False)),
        write(tmp_path / "lines.json", jsonl(rows).replace("\n", "\n\n")),
        write(
            tmp_path / "t.csv",
            "text,label\r\n"
            + "".join(f"{text},{row['label']}\r\n" for text, row in zip(quoted, rows, strict=True)),
        ),
        write(
            tmp_path / "t.tsv",
            "label\ttext\n"
            + "".join(f"{row['label']}\t{text}\n" for text, row in zip(quoted, rows, strict=True)),
        ),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = [read(path) for path in [*files, tmp_path / "t.parquet"]]
    assert len({splits.fingerprint for splits in found}) == 1
    assert rows_of(found[0]) == 31
    texts = [text for part in (found[0].train, found[0].validation, found[0].test) for text in part["text"]]
    assert sorted(texts) == sorted(row["text"] for row in rows)


def test_a_folder_gives_its_own_splits(tmp_path):
    for name, part in {"train.jsonl": GOOD[:20], "dev.jsonl": GOOD[20:26], "test.jsonl": GOOD[26:]}.items():
        write(tmp_path / name, jsonl(part))
    splits = read(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 6, 4)
    assert splits.validation["text"][0] == GOOD[20]["text"]


def test_a_folder_without_training_or_with_two_is_refused(tmp_path):
    write(tmp_path / "test.jsonl", jsonl(GOOD))
    with pytest.raises(DataError, match="needs a train file .* it holds test.jsonl"):
        read(tmp_path)
    write(tmp_path / "train.jsonl", jsonl(GOOD))
    write(tmp_path / "train.csv", "text,label\n")
    with pytest.raises(DataError, match="train.csv and train.jsonl both claim the train split"):
        read(tmp_path)


def test_a_folder_that_datasets_wrote_keeps_the_order_of_its_class_names(tmp_path):
    data = datasets.Dataset.from_dict(
        {"text": [row["text"] for row in GOOD], "label": [i % 2 for i in range(30)]}, features=SPAM
    )
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "hub")
    data.to_parquet(tmp_path / "t.parquet")
    for path in (tmp_path / "hub", tmp_path / "t.parquet"):
        splits = read(path)
        assert splits.labels == ("spam", "ham")
        assert [row["label"] for row in splits.train] == [
            int(row["text"].split()[1]) % 2 for row in splits.train
        ]


@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
def test_a_test_split_without_labels_is_named_or_made_anew(bad_rows, tmp_path):
    texts = {"text": [row["text"] for row in GOOD]}
    train = datasets.Dataset.from_dict(texts | {"label": [i % 2 for i in range(30)]}, features=SPAM)
    test = datasets.Dataset.from_dict(texts | {"label": [-1] * 30}, features=SPAM)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path)
    if bad_rows == "stop":
        with pytest.raises(DataError, match=r"\[test\], row 0, column 'label': -1 is the number of no class"):
            read(tmp_path)
    else:
        splits = read(tmp_path, bad_rows="skip")
        assert len(splits.skipped) == 30
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 3, 3)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("validation_matched", "validation"),
        ("dev", "validation"),
        ("Test", "test"),
        ("unsupervised", None),
        ("train-00000-of-00001", "train"),
        ("latest", None),
    ],
)
def test_split_of_reads_the_usual_names(name, split):
    assert split_of(name) == split
