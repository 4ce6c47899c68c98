"""The text of pretraining: prose without code, no near duplicates, and a tokenizer that gives the same pieces
again."""

import hashlib
import json

import pytest
from transformers import AutoTokenizer

from stabviz.finetune.pretrain.corpus import (
    SPECIAL,
    Document,
    docstring_documents,
    looks_like_code,
    message_documents,
    pretraining_documents,
    split_sentences,
    topic_documents,
    train_tokenizer,
    without_near_duplicates,
)

SENTENCES = [
    "The order arrived late.",
    "Please refund the order.",
    "The router lost the network.",
    "Restart the router first.",
    "The invoice names another order.",
]


@pytest.fixture(scope="module")
def topics():
    return without_near_duplicates(topic_documents())


@pytest.mark.parametrize(
    "line",
    [
        ">>> x = 3",
        "... more",
        "$ python -m this",
        "*********",
        "x = f(3)",
        "# a comment",
        "def f(a):",
        "for x in y:",
        "open(name, mode='r') -> file",
        "@decorator",
        "a[i:j], b{}",
    ],
)
def test_looks_like_code_knows_code(line):
    assert looks_like_code(line)


@pytest.mark.parametrize(
    "line",
    [
        "Return the name of the file.",
        "for all of them",
        "import statements are run once",
        "It is called with two arguments (a name and a mode).",
    ],
)
def test_looks_like_code_lets_prose_pass(line):
    assert not looks_like_code(line)


def test_split_sentences_joins_wrapped_lines_and_leaves_code_out():
    text = (
        "Open a file\nand read it.  Then close it.\n\n"
        + "   >>> f = open(name)\n   >>> f.read()\n\n* A last point"
    )
    assert split_sentences(text) == ["Open a file and read it.", "Then close it.", "A last point"]


def test_split_sentences_drops_single_words():
    assert split_sentences("Deprecated.\n\nUse the other one.") == ["Use the other one."]


def test_topic_documents_are_prose_of_the_language_reference(topics):
    text = " ".join(sentence for document in topics for sentence in document.sentences)
    assert len(text) > 200_000
    assert ">>>" not in text
    assert "expression" in text
    assert {document.source for document in topics} == {"topics"}


def test_docstring_documents_parse_without_importing(tmp_path):
    package = tmp_path / "sub"
    package.mkdir()
    (package / "a.py").write_text(
        '"""One thing. Two things."""\nraise SystemExit\ndef f():\n    """Do it well."""\n'
    )
    (package / "broken.py").write_text('"""Not Python."""\ndef (')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text('"""A test of it."""')
    found = list(docstring_documents(tmp_path))
    assert [(d.name, d.sentences) for d in found] == [
        ("docstring/sub.a:1", ("One thing.", "Two things.")),
        ("docstring/sub.a:3", ("Do it well.",)),
    ]


def test_message_documents_read_texts_and_name_a_broken_line(tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "It broke. Help me.", "intent": "x"}\n{"text": "hi"}\n')
    bad.write_text('{"text": "a b"}\n{"message": "a b"}\n')
    assert [d.sentences for d in message_documents(good)] == [("It broke.", "Help me."), ("hi",)]
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2"):
        list(message_documents(bad))


def test_without_near_duplicates_keeps_the_first_of_two_that_differ_in_a_word():
    long = "Return the number of bytes that were read from the file since it was opened by the caller"
    texts = [long + ".", long + " today.", "Something else is said here."]
    kept = without_near_duplicates(Document(name=f"d/{i}", sentences=(text,)) for i, text in enumerate(texts))
    assert [document.name for document in kept] == ["d/0", "d/2"]


def test_without_near_duplicates_forgets_numbers_and_drops_what_is_empty():
    texts = [("Version 3 is out now.",), ("version 17 is out now",), ()]
    kept = without_near_duplicates(Document(name=f"d/{i}", sentences=s) for i, s in enumerate(texts))
    assert [document.name for document in kept] == ["d/0"]


def test_pretraining_documents_hold_all_three_sources(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text('"""Walk to the shop."""')
    messages = tmp_path / "train.jsonl"
    messages.write_text(json.dumps({"text": "My parcel is lost."}) + "\n")
    monkeypatch.setattr(
        "stabviz.finetune.pretrain.corpus.docstring_documents", lambda: docstring_documents(tmp_path)
    )
    sources = [document.source for document in pretraining_documents(messages)]
    assert set(sources) == {"topics", "docstring", "support-desk"}
    assert "support-desk" not in {document.source for document in pretraining_documents(None)}


def test_train_tokenizer_lowers_splits_and_marks_pairs():
    tokenizer = train_tokenizer(SENTENCES * 3, vocab_size=80)
    assert tokenizer.tokenize("THE Order, orders") == tokenizer.tokenize("the order, orders")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == list(SPECIAL.values())
    pair = tokenizer("the order", "the router")
    assert pair["input_ids"][0] == tokenizer.cls_token_id
    assert pair["input_ids"].count(tokenizer.sep_token_id) == 2
    assert set(pair["token_type_ids"]) == {0, 1}


def test_train_tokenizer_gives_the_same_bytes_every_time(tmp_path, topics):
    # left alone, the trainer of `tokenizers` gave four different vocabularies in four calls on this text
    texts = [sentence for document in topics[:20] for sentence in document.sentences]
    hashes = set()
    for name in "abcd":
        train_tokenizer(texts, vocab_size=1000).save_pretrained(tmp_path / name)
        hashes.add(hashlib.sha256((tmp_path / name / "tokenizer.json").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_train_tokenizer_saves_what_auto_tokenizer_loads(tmp_path):
    trained = train_tokenizer(SENTENCES * 3, vocab_size=80)
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the invoices")["input_ids"] == trained("the invoices")["input_ids"]
    assert sorted(loaded.all_special_tokens) == sorted(SPECIAL.values())
    assert loaded.mask_token == "[MASK]"


def test_word_ids_of_the_trained_tokenizer_align_pieces_with_words():
    tokenizer = train_tokenizer(SENTENCES * 3, vocab_size=60)
    ids = tokenizer(["invoices", "order"], is_split_into_words=True).word_ids()
    assert ids[0] is ids[-1] is None
    assert [word for word in ids if word is not None] == sorted(word for word in ids if word is not None)
    assert {0, 1} <= set(ids)
