"""Predictions and scores of a model on a split, on one process or several."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.encode import IGNORED, TokenRows
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.tasks import KINDS, Found
from stabviz.methods.objective import model_inputs
from stabviz.scores import LOWER_IS_BETTER, headline

BATCH = 64
"""Rows of one evaluation batch; there is no gradient to keep, so that it may be larger than in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model says of a split, and how good that is."""

    scores: dict
    """As the functions of `stabviz.scores` return them, with loss_nats (of a regression: loss)."""
    predictions: list
    """The class of each row, its classes, its number, or the tags of its words, in the order of the rows."""
    by_row: Found = ()
    """(logits, labels) of each row, as `predict_logits` returns them."""
    rows: TokenRows | None = None
    """The rows, encoded."""
    metric: str = ""
    """The score that counts; "": accuracy of classes, F1 of entities."""

    @property
    def named(self) -> tuple[str, float]:
        """Name and value of the score that counts."""
        return (self.metric, float(self.scores[self.metric])) if self.metric else headline(self.scores)

    @property
    def score(self) -> float:
        """The score that counts, negated where less is more, as scikit-learn's neg_...: high is good."""
        name, value = self.named
        return -value if name in LOWER_IS_BETTER else value

    @property
    def loss(self) -> float:
        """What is minimised, measured on this split."""
        return float(self.scores.get("loss_nats", self.scores.get("loss", math.nan)))


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

    Shapes: one entry a row, logits (1, C) with labels (1,) or (1, C); tags: one for each first word piece
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
    if labels.ndim == 1 or labels.is_floating_point():  # one label a row, or one vector
        logits, labels = logits[:, None], labels[:, None]
    counts = labels != IGNORED if not labels.is_floating_point() else torch.ones(labels.shape[:2]).bool()
    return [(logits[i, kept].numpy(), labels[i, kept].numpy()) for i, kept in enumerate(counts)]


def evaluate(
    model: nn.Module, rows: TokenRows, labels: tuple[str, ...], *, metric: str = "", **options
) -> Evaluation:
    """Predict a split and score it, as the kind of task asks; words without a word piece count as "O".

    Units:  loss_nats per label that counts
    Raises: ValueError if the split is empty
    """
    if not len(rows):
        raise ValueError("evaluate: rows must hold at least one row; got 0. Is the split empty?")
    found = predict_logits(model, rows, **options)
    scores, predictions = KINDS[rows.kind].score(found, rows, labels)
    metric = metric or KINDS[rows.kind].metrics[0]
    return Evaluation(scores=scores, predictions=predictions, by_row=found, rows=rows, metric=metric)
