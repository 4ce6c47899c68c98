"""A student of a teacher: healed or drawn, it comes nearer, and leaves a checkpoint like any other."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, subset_tokenizer, swapped_documents, train_tokenizer
from stabviz.finetune.pretrain.distil import DistillationRows, Student, start_as_teacher
from stabviz.finetune.pretrain.run import pretrain
from stabviz.models.pretrained import load_body, load_tokenizer
from stabviz.trace.log import read_metrics
from tests.finetune.conftest import WORDS

TINY = {"vocab_size": 100, "width": 16, "layers": 1, "heads": 2, "max_length": 32, "batch": 8, "steps": 12}
TINY |= {"warmup_steps": 2, "evaluate_every": 4, "save_every": 5, "held_out": 0.2, "progress": False}


@pytest.fixture(scope="module")
def documents():
    sentences = [
        " ".join(WORDS[(i * k + j) % len(WORDS)] for j in range(5)) for i in range(8) for k in (1, 3, 5)
    ]
    return [Document(name=f"topics/{i}", sentences=tuple(sentences[i : i + 3])) for i in range(20)]


@pytest.fixture
def config(tiny_bert_folder, tmp_path):
    return PretrainConfig.of(
        out=tmp_path / "run", teacher=str(tiny_bert_folder), device="cpu", lr=5e-3, **TINY
    )


def test_a_drawn_student_comes_nearer_to_its_teacher_and_is_a_checkpoint(config, documents):
    made = pretrain(config, documents=documents)
    loss = made.trace["loss_nats"][0]
    assert loss[-4:].mean() < 0.8 * loss[:4].mean()
    score = made.trace["validation_score"][0]
    score = score[~np.isnan(score)]
    masked = made.trace["masked_lm_loss_nats"][0]
    assert masked[-4:].mean() < masked[:4].mean()
    assert score[-1] > score[0]
    assert json.loads((config.run.out / "scores.json").read_text()) == {"text_cosine": score.max()}
    model = AutoModelForSequenceClassification.from_pretrained(made.folder)
    assert (model.config.hidden_size, model.config.hidden_dropout_prob) == (16, 0.1)
    best = AutoModelForMaskedLM.from_pretrained(config.run.out / "best")
    given = AutoModelForMaskedLM.from_pretrained(made.folder)
    assert {p.dtype for p in given.parameters()} == {torch.float32}  # stored in half precision
    assert (made.folder / "model.safetensors").stat().st_size < 0.6 * (
        config.run.out / "best" / "model.safetensors"
    ).stat().st_size
    assert given.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=1e-2)
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    torch.testing.assert_close(given(ids).logits, best(ids).logits, atol=2e-2, rtol=2e-2)
    card = (made.folder / "README.md").read_text()
    assert f"--teacher {config.distil.teacher}" in card
    assert "random weights, 1 layers of width 16" in card


def test_a_stopped_student_is_resumed_to_the_same_log(config, documents):
    whole = pretrain(config, documents=documents).trace["loss_nats"]
    again = config.replace(out=config.run.out.parent / "again")
    assert pretrain(again.replace(stop_after=7), documents=documents).scores is None
    pretrain(again, documents=documents, resume=True)
    assert read_metrics(again.run.out / "metrics.jsonl")["loss_nats"].tolist() == whole.tolist()


def test_a_healed_student_starts_from_the_weights_that_it_is_given(config, documents):
    healed = config.replace(student=config.distil.teacher, steps=1, warmup_steps=0, lr=1e-12, dropout=0.0)
    made = pretrain(healed, documents=documents)
    assert made.trace["word_error"][0, 0] < 1e-9  # it is its teacher
    assert made.scores["text_cosine"] < 0.99  # whose [CLS] is not the mean of its words


def test_embeddings_begin_with_the_teachers_neighbourhoods(tiny_bert_folder):
    teacher, teachers = load_body(str(tiny_bert_folder)), load_tokenizer(str(tiny_bert_folder))
    tokenizer = subset_tokenizer(teachers, WORDS[::2], vocab_size=60, max_length=32)
    student = load_body(str(tiny_bert_folder))
    student.resize_token_embeddings(len(tokenizer))
    start_as_teacher(student, tokenizer, teacher, teachers)
    own, theirs = (model.get_input_embeddings().weight.detach() for model in (student, teacher))
    known = list(tokenizer.get_vocab())
    assert len(known) == 60
    mine_VD = own[[tokenizer.get_vocab()[piece] for piece in known]]
    given_VD = theirs[[teachers.get_vocab()[piece] for piece in known]]
    # as wide as the teacher: a rotation, a shift and a scale, so that distances keep their proportions
    ratio = torch.pdist(mine_VD) / torch.pdist(given_VD)
    assert ratio.std() / ratio.mean() < 1e-3


def test_a_student_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="student must be left out without a teacher; got 'minilm:3'"):
        PretrainConfig.of(student="minilm:3")


def test_pieces_are_the_teachers_own_by_count_and_then_by_number(tiny_bert_folder):
    teachers = load_tokenizer(str(tiny_bert_folder))
    often, once = WORDS[0], WORDS[1]
    tokenizer = subset_tokenizer(teachers, [f"{often} {often} {often} {once}"], vocab_size=100, max_length=32)
    ours, theirs = tokenizer.get_vocab(), teachers.get_vocab()
    assert set(ours) <= set(theirs)
    assert [ours[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert often in theirs
    assert ours[often] == min(
        i for piece, i in ours.items() if len(piece.strip("#")) > 1 and "[" not in piece
    )
    assert tokenizer(often).input_ids[0] == ours["[CLS]"]


def test_swapped_texts_keep_seven_words_in_ten_and_come_by_seed(documents):
    tokenizer = train_tokenizer([*WORDS, *WORDS, "zigzagging"], vocab_size=400, max_length=32)
    texts = swapped_documents(documents, tokenizer, 50, 0)
    assert texts == swapped_documents(documents, tokenizer, 50, 0)
    assert texts != swapped_documents(documents, tokenizer, 50, 1)
    assert swapped_documents(documents, tokenizer, 0, 0) == []
    assert {text.source for text in texts} == {"swapped"}
    assert len(texts) == 50 > len(documents)
    originals = {tuple(len(s.split()) for s in document.sentences) for document in documents}
    words = [word for text in texts for sentence in text.sentences for word in sentence.split()]
    assert {tuple(len(s.split()) for s in text.sentences) for text in texts} <= originals
    told = {word for document in documents for sentence in document.sentences for word in sentence.split()}
    strange = np.mean([word not in told for word in words])
    assert 0.1 < strange < 0.3  # some of the replaced words are among those that were there
    made_up = [word for word in words if word not in tokenizer.get_vocab()]
    assert 0.1 < len(made_up) / len(words) < 0.2  # half of them
    assert all(len(tokenizer.tokenize(word)) > 1 for word in made_up)


def test_masks_of_a_row_hang_on_seed_epoch_and_row_and_the_teacher_sees_all(documents, tiny_bert_folder):
    teachers = load_tokenizer(str(tiny_bert_folder))
    rows, plain = (
        DistillationRows(documents, teachers, teachers, max_length=32, seed=3, share=share)
        for share in (0.3, 0)
    )
    first, again, later = rows[0, 1], rows[0, 1], rows[1, 1]
    assert first == again != later
    assert first["teacher"] == plain[0, 1]["teacher"] == later["teacher"]
    hidden = np.array(first["labels"]) != -100
    assert hidden.any()
    assert np.array(plain[0, 1]["input_ids"])[hidden].tolist() == np.array(first["labels"])[hidden].tolist()


def test_a_student_without_a_vocabulary_head_says_no_logits(tiny_bert_folder):
    student = Student(load_body(str(tiny_bert_folder)), 48)
    said = student(input_ids=torch.ones(2, 5, dtype=torch.long), asked_BL=torch.ones(2, 5, dtype=torch.bool))
    assert said.logits is None
    assert said.last_hidden_state.shape == (2, 5, 48)
