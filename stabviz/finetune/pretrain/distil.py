"""`stabviz pretrain --teacher`: a small BERT that learns what a larger one says of texts.

The student is a model that is there (`--student minilm:3`: the cut model is healed), or one drawn by
`ShapeConfig`, with word pieces of its own and embeddings that begin as the teacher's by principal components.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertModel

from stabviz.finetune.data.batches import collate
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import Evaluation
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, train_tokenizer
from stabviz.finetune.pretrain.shape import small_bert
from stabviz.finetune.train.micro_batches import autocast
from stabviz.finetune.train.setup import Setup
from stabviz.methods.distillation import distillation_objective
from stabviz.methods.objective import Objective
from stabviz.models.pretrained import load_body, load_tokenizer
from stabviz.seeds import integer


class Student(nn.Module):
    """A BERT without a head, and the map from its width to the teacher's, which is thrown away afterwards."""

    bert: Any
    """transformers' module, whose own attributes a type checker does not see."""

    def __init__(self, bert: Any, width: int):
        super().__init__()
        self.bert = bert
        own = bert.config.hidden_size
        self.to_teacher: nn.Module = nn.Identity() if own == width else nn.Linear(own, width)

    def forward(self, **inputs) -> Tensor:
        """Return the last hidden states in the teacher's width."""
        return self.to_teacher(self.bert(**inputs).last_hidden_state)


class DistillationRows(Dataset):
    """Texts as the student's word pieces and the teacher's; item (epoch, index), the same in each epoch."""

    def __init__(self, documents: Sequence[Document], tokenizer: Any, teachers: Any, *, max_length: int):
        self.texts = [text for document in documents for text in passages(document, max_length)]
        encode = partial(_encoded, self.texts, max_length=max_length)
        self._own, self._teachers = encode(tokenizer), encode(teachers)
        self.lengths = np.array([len(ids) for ids, _ in self._own])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        _, index = item
        ids, words = self._own[index]
        # the label is not read: a row counts as one target
        row = {"input_ids": ids, "words": words, "labels": index, "row": index}
        return row | {"teacher": self._teachers[index]}


def passages(document: Document, max_length: int) -> list[str]:
    """Join sentences up to half as many words as there may be pieces: most words are one or two pieces."""
    found: list[list[str]] = [[]]
    for sentence in document.sentences:
        if found[-1] and sum(len(s.split()) for s in [*found[-1], sentence]) > max_length // 2:
            found.append([])
        found[-1].append(sentence)
    return [" ".join(sentences) for sentences in found if sentences]


def _encoded(texts: list[str], tokenizer: Any, *, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Return for each text its pieces, and the word of each counted from 1; 0 for special tokens."""
    encodings = tokenizer(texts, truncation=True, max_length=max_length).encodings
    return [(e.ids, [0 if word is None else word + 1 for word in e.word_ids]) for e in encodings]


def collate_both(rows: list[dict[str, Any]], *, pad_id: int, teacher_pad_id: int) -> dict[str, Tensor]:
    """Pad the student's pieces as `collate` does, and stack the teacher's with their words and mask.

    Shapes: teacher (B, 3, M)
    """
    batch = collate(
        [{name: x for name, x in row.items() if name != "teacher"} for row in rows], pad_id=pad_id
    )
    theirs = collate(
        [{"input_ids": ids, "words": words} for ids, words in (row["teacher"] for row in rows)],
        pad_id=teacher_pad_id,
    )
    names = ("input_ids", "words", "attention_mask")
    return batch | {"teacher": torch.stack([theirs[name] for name in names], dim=1)}


@torch.no_grad()
def start_as_teacher(bert: Any, tokenizer: Any, teacher: Any, teachers: Any) -> None:
    """Start the word embeddings as the teacher's, by principal components, at the size of random ones.

    A piece that the teacher does not have begins as the mean of the teacher's pieces that spell it.
    """
    theirs_VD, known = teacher.get_input_embeddings().weight, teachers.get_vocab()
    rows = []
    for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        spelt = teachers.tokenize(piece.removeprefix("##")) or [teachers.unk_token]
        ids = [known[piece]] if piece in known else teachers.convert_tokens_to_ids(spelt)
        rows.append(theirs_VD[ids].mean(dim=0))
    centred_VD = torch.stack(rows) - torch.stack(rows).mean(dim=0)
    own = bert.get_input_embeddings().weight
    _, _, components_KD = torch.linalg.svd(centred_VD, full_matrices=False)
    started = centred_VD @ components_KD[: own.shape[1]].mT
    own[:, : started.shape[1]].copy_(started * (bert.config.initializer_range / started.std()))


def prepare_student(
    config: PretrainConfig,
    training: Sequence[Document],
    held_out: Sequence[Document],
    processes: ProcessGroup,
) -> Setup:
    """Load the teacher, load or draw the student, encode the texts; return what the loop needs."""
    transformers.utils.logging.disable_progress_bar()
    assert config.distil.teacher is not None
    teacher: Any = load_body(config.distil.teacher).to(processes.device)
    teachers = load_tokenizer(config.distil.teacher)
    torch.manual_seed(integer(config.run.seed, "initial weights"))
    if config.distil.student is None:
        tokenizer = train_tokenizer(
            (s for document in training for s in document.sentences),
            vocab_size=config.text.vocab_size,
            max_length=config.text.max_length,
        )
        shape = small_bert(len(tokenizer), config, dropout=config.shape.dropout)
        bert: Any = BertModel(shape, add_pooling_layer=False)
        start_as_teacher(bert, tokenizer, teacher, teachers)
    else:
        tokenizer = load_tokenizer(config.distil.student)
        bert = load_body(config.distil.student, dropout=config.shape.dropout)
    # what config.json asks of who fine-tunes; the layers that train here have theirs already
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(bert.config, name, config.shape.checkpoint_dropout)
    model = Student(bert, teacher.config.hidden_size)
    rows, measuring = (
        DistillationRows(part, tokenizer, teachers, max_length=config.text.max_length)
        for part in (training, held_out)
    )
    padded = partial(collate_both, pad_id=tokenizer.pad_token_id, teacher_pad_id=teachers.pad_token_id)
    objective = distillation_objective(teacher)

    def save_model(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
        inside = {name.removeprefix("bert."): x for name, x in weights.items() if name.startswith("bert.")}
        model.bert.save_pretrained(folder, state_dict=inside)
        tokenizer.save_pretrained(folder)

    text = hashlib.sha256(repr([rows.texts, measuring.texts]).encode())
    return Setup(
        config=config,
        processes=processes,
        model=model,
        objective=objective,
        rows=rows,
        collate=padded,
        save_model=save_model,
        fingerprint=text.hexdigest(),
        evaluate=partial(
            _held_out_errors,
            objective=objective,
            rows=measuring,
            collate=padded,
            device=processes.device,
            autocast=partial(autocast, config.train.compute.precision, processes.device),
        ),
    )


def _held_out_errors(
    model: nn.Module,
    check: Callable[[], None],
    *,
    objective: Objective,
    rows: DistillationRows,
    collate: Callable,
    device: torch.device,
    autocast: Callable,
    batch: int = 32,
) -> Evaluation:
    """Measure on held-out documents, always in the same batches: relations are those inside of a batch."""
    was_training, found = model.training, []
    model.eval()
    try:
        for first in range(0, len(rows), batch):
            check()
            tensors = collate([rows[0, i] for i in range(first, min(first + batch, len(rows)))])
            with torch.no_grad(), autocast():
                loss, measured = objective(model, {name: x.to(device) for name, x in tensors.items()})
            found.append({"loss": loss, **measured})
    finally:
        model.train(was_training)
    scores = {name: fmean(float(one[name]) for one in found) for name in found[0]}
    return Evaluation(scores=scores | {"texts": len(rows)}, predictions=[], metric="text_cosine")


def publish_student(best: Path, card: str, folder: Path) -> None:
    """Write what fine-tuning starts from: the best weights, with their card."""
    shutil.copytree(best, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
