"""`stabviz pretrain --teacher`: a small BERT that learns what a larger one says of texts.

The student is a model that is there (`--student minilm:3`: the cut model is healed), or one drawn by
`ShapeConfig`, with some of the teacher's word pieces and embeddings that begin as the teacher's by principal
components; it learns masked words beside.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoConfig, BertForMaskedLM

from stabviz.finetune.data.batches import collate
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import Evaluation
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, subset_tokenizer, swapped_documents
from stabviz.finetune.pretrain.masking import mask_pieces
from stabviz.finetune.pretrain.shape import small_bert, start_with_sinusoids, with_small_embeddings
from stabviz.finetune.train.micro_batches import autocast
from stabviz.finetune.train.setup import Setup
from stabviz.methods.distillation import distillation_objective
from stabviz.methods.objective import Objective
from stabviz.models.pretrained import load_body, load_tokenizer
from stabviz.seeds import generator, integer


@dataclass(frozen=True, slots=True)
class Said:
    """What a student says of a batch."""

    last_hidden_state: Tensor
    """(B, L, D) in the teacher's width."""
    logits: Tensor | None
    """(N, V) at the pieces that are asked for; None from a model without a vocabulary head."""


class Student(nn.Module):
    """A BERT, and the map from its width to the teacher's, which is thrown away afterwards."""

    model: Any
    """transformers' module, whose own attributes a type checker does not see: with a vocabulary head
    (`BertForMaskedLM`), or without any."""

    def __init__(self, model: Any, width: int):
        super().__init__()
        self.model = model
        own = model.config.hidden_size
        self.to_teacher: nn.Module = nn.Identity() if own == width else nn.Linear(own, width)
        for parameter in self.to_teacher.parameters():
            nn.init.normal_(parameter, std=0.005)  # small: a hundred steps would go by to unlearn a usual one

    @property
    def has_head(self) -> bool:
        """Whether it can be asked for hidden pieces."""
        return isinstance(self.model, BertForMaskedLM)

    def forward(self, asked_BL: Tensor | None = None, **inputs) -> Said:
        """Return hidden states in the teacher's width, and logits at the pieces that are asked for."""
        hidden_BLD = (self.model.bert if self.has_head else self.model)(**inputs).last_hidden_state
        logits_NV = self.model.cls(hidden_BLD[asked_BL]) if self.has_head and asked_BL is not None else None
        return Said(self.to_teacher(hidden_BLD), logits_NV)


class DistillationRows(Dataset):
    """Texts as the student's word pieces, some of them hidden, and the teacher's; item (epoch, index).

    The masks are new in each epoch, keyed to (seed, epoch, row).
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Any,
        teachers: Any,
        *,
        max_length: int,
        seed: int = 0,
        share: float = 0.0,
    ):
        self.texts = [text for document in documents for text in passages(document, max_length)]
        encode = partial(_encoded, self.texts, max_length=max_length)
        self._own, self._teachers = encode(tokenizer), encode(teachers)
        self.lengths = np.array([len(ids) for ids, _ in self._own])
        self.tokenizer, self.seed, self.share = tokenizer, seed, share

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        ids, words = self._own[index]
        labels: Any = index  # it is not read: a row counts as one target
        if self.share:
            masked_L, labels_L = mask_pieces(
                torch.tensor(ids),
                generator(self.seed, "row", epoch, index),
                special_ids=self.tokenizer.all_special_ids,
                share=self.share,
                mask_id=self.tokenizer.mask_token_id,
                vocab_size=len(self.tokenizer),
            )
            ids, labels = masked_L.tolist(), labels_L.tolist()
        row = {"input_ids": ids, "words": words, "labels": labels, "row": index}
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

    Raises: KeyError for a piece that the teacher does not have
    """
    theirs_VD, known = teacher.get_input_embeddings().weight, teachers.get_vocab()
    rows_VD = theirs_VD[[known[piece] for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]]
    centred_VD = rows_VD - rows_VD.mean(dim=0)
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
        tokenizer = subset_tokenizer(
            teachers,
            (s for document in training for s in document.sentences),
            vocab_size=config.text.vocab_size,
            max_length=config.text.max_length,
        )
        model: Any = BertForMaskedLM(small_bert(len(tokenizer), config, dropout=config.shape.dropout))
        start_with_sinusoids(model)
        start_as_teacher(model, tokenizer, teacher, teachers)
    else:
        tokenizer = load_tokenizer(config.distil.student)
        model = load_body(config.distil.student, dropout=config.shape.dropout)
    # what config.json asks of who fine-tunes; the layers that train here have theirs already
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config, name, config.shape.checkpoint_dropout)
    student = Student(model, teacher.config.hidden_size)
    masked = config.distil.masked_weight if student.has_head else 0.0
    seed, share = config.run.seed, config.text.mask_share if masked else 0.0
    beside = swapped_documents(training, tokenizer, round(config.distil.swapped_texts * len(training)), seed)
    rows, measuring = (
        DistillationRows(
            part, tokenizer, teachers, max_length=config.text.max_length, seed=seed, share=part_share
        )
        for part, part_share in (([*training, *beside], share), (held_out, 0.0))
    )
    padded = partial(collate_both, pad_id=tokenizer.pad_token_id, teacher_pad_id=teachers.pad_token_id)
    objective = distillation_objective(teacher, masked_weight=masked)

    def save_model(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
        inside = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
        model.model.save_pretrained(folder, state_dict=inside)
        tokenizer.save_pretrained(folder)

    text = hashlib.sha256(repr([rows.texts, measuring.texts]).encode())
    return Setup(
        config=config,
        processes=processes,
        model=student,
        objective=objective,
        loss_unit="",
        rows=rows,
        collate=padded,
        save_model=save_model,
        fingerprint=text.hexdigest(),
        evaluate=partial(
            _held_out_errors,
            objective=distillation_objective(teacher),
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
    """Write what fine-tuning starts from: the best weights in half precision, with their card.

    Loaded they are float32 again, as config.json says. A drawn student's embeddings get the size that they
    began with, as after `stabviz.finetune.pretrain.run.pretrain` without a teacher.
    """
    shutil.copytree(best, folder, dirs_exist_ok=True)
    weights = load_file(best / "model.safetensors")
    if any(name.startswith("cls.") for name in weights):
        weights = with_small_embeddings(weights, AutoConfig.from_pretrained(best).initializer_range)
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(card, encoding="utf-8")
