"""Predictions and scores of a model on a split, on one process or several."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.encode import IGNORED, TokenRows
from stabviz.finetune.distributed import ProcessGroup
from stabviz.methods.objective import model_inputs
from stabviz.ops import cross_entropy
from stabviz.scores import classification_scores, entity_scores, headline

BATCH = 64
"""Rows of one evaluation batch; there is no gradient to keep, so that it may be larger than in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model says of a split, and how good that is."""

    scores: dict
    """As `classification_scores` or `entity_scores` returns them, with loss_nats."""
    predictions: list
    """The class of each row, or the tags of its words, in the order of the rows."""

    @property
    def score(self) -> float:
        """Accuracy of classes, F1 of entities."""
        return headline(self.scores)[1]


def predict_logits(
    model: nn.Module,
    rows: TokenRows,
    *,
    pad_id: int,
    processes: ProcessGroup,
    autocast: Callable,
    batch: int = BATCH,
    check: Callable[[], None] = lambda: None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (logits, labels) of each row in order, where there is a label; all processes call.

    Shapes: classes: logits (1, C), labels (1,); tags: one entry for each first word piece
    """
    was_training = model.training
    model.eval()
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    try:
        for indices, mine in _shares(rows.lengths, batch, processes):
            check()
            tensors = collate([rows[(0, i)] for i in indices], pad_id=pad_id)
            with torch.no_grad(), autocast():
                inputs = {name: x.to(processes.device) for name, x in model_inputs(tensors).items()}
                logits = model(**inputs).logits.float().cpu()
            if mine:
                found |= dict(zip(indices, _labelled(logits, tensors["labels"]), strict=True))
    finally:
        model.train(was_training)
    everywhere = {index: item for part in processes.gather(found) for index, item in part.items()}
    return [everywhere[i] for i in range(len(rows))]


def _shares(lengths, batch: int, processes: ProcessGroup) -> Iterator[tuple[list[int], bool]]:
    """Batches of rows of like length for this process; every process gets as many, the last may be spare."""
    # Spare passes too: FSDP gathers weights in each, and one process short would leave all waiting.
    order = np.argsort(lengths, kind="stable").tolist()
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    for first in range(0, len(batches), processes.size):
        at = first + processes.rank
        yield batches[min(at, len(batches) - 1)], at < len(batches)


def _labelled(logits: Tensor, labels: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    if labels.ndim == 1:  # classes: one label a row
        logits, labels = logits[:, None], labels[:, None]
    counts = labels != IGNORED
    return [(logits[i, kept].numpy(), labels[i, kept].numpy()) for i, kept in enumerate(counts)]


def evaluate(model: nn.Module, rows: TokenRows, labels: tuple[str, ...], **options) -> Evaluation:
    """Predict a split and score it; words without a word piece (cut off, or empty) count as "O".

    Units:  loss_nats per label that counts
    Raises: ValueError if the split is empty
    """
    if not len(rows):
        raise ValueError("evaluate: rows must hold at least one row; got 0. Is the split empty?")
    found = predict_logits(model, rows, **options)
    logits_NC = torch.from_numpy(np.concatenate([logits for logits, _ in found]))
    labels_N = torch.from_numpy(np.concatenate([label for _, label in found])).long()
    if rows.kind == "classes":
        scores = classification_scores(logits_NC, labels_N, labels)
        return Evaluation(scores=scores, predictions=logits_NC.argmax(dim=-1).tolist())
    true, predicted = [], []
    for (logits, _), tags, words in zip(found, rows.tags, rows.labelled_words, strict=True):
        tag_of = dict(zip(words, logits.argmax(axis=-1).tolist(), strict=True))
        true.append([labels[i] for i in tags])
        predicted.append([labels[tag_of[w]] if w in tag_of else "O" for w in range(len(tags))])
    scores = entity_scores(true, predicted) | {"loss_nats": float(cross_entropy(logits_NC, labels_N)[0])}
    return Evaluation(scores=scores, predictions=predicted)
