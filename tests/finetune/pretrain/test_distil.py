"""A student of a teacher: healed or drawn, it comes nearer, and leaves a checkpoint like any other."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, train_tokenizer
from stabviz.finetune.pretrain.distil import start_as_teacher
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
    assert score[-1] > score[0] + 0.05
    assert json.loads((config.run.out / "scores.json").read_text()) == {"text_cosine": score.max()}
    model = AutoModelForSequenceClassification.from_pretrained(made.folder)
    assert (model.config.hidden_size, model.config.hidden_dropout_prob) == (16, 0.1)
    best = AutoModel.from_pretrained(config.run.out / "best").state_dict()
    assert torch.equal(
        model.bert.encoder.layer[0].output.dense.weight, best["encoder.layer.0.output.dense.weight"]
    )
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
    assert made.trace["loss_nats"][0, 0] < 1e-6  # it is its teacher
    assert made.scores["text_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_embeddings_begin_with_the_teachers_neighbourhoods(tiny_bert_folder):
    teacher, teachers = load_body(str(tiny_bert_folder)), load_tokenizer(str(tiny_bert_folder))
    tokenizer = train_tokenizer(WORDS, vocab_size=100, max_length=32)
    student = load_body(str(tiny_bert_folder))
    student.resize_token_embeddings(len(tokenizer))
    start_as_teacher(student, tokenizer, teacher, teachers)
    own, theirs = (model.get_input_embeddings().weight.detach() for model in (student, teacher))
    known = [piece for piece in tokenizer.get_vocab() if piece in teachers.get_vocab()]
    assert len(known) > 20
    mine_VD = own[[tokenizer.get_vocab()[piece] for piece in known]]
    given_VD = theirs[[teachers.get_vocab()[piece] for piece in known]]
    # as wide as the teacher: a rotation, a shift and a scale, so that distances keep their proportions
    ratio = torch.pdist(mine_VD) / torch.pdist(given_VD)
    assert ratio.std() / ratio.mean() < 1e-3


def test_a_student_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="student must be left out without a teacher; got 'minilm:3'"):
        PretrainConfig.of(student="minilm:3")
