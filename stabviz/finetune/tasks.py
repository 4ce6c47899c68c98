"""What a run learns to say of a text: all that differs between kinds of task is a row of KINDS.

    classes        one class a text (or pair of texts)
    multi_label    any number of classes
    regression     a number
    tags           a BIO tag a word: named entities

A text and a pair of texts differ in their columns alone. Everything else (loop, batches, checkpoints, report)
knows no kind, but for word pieces, where a tag stands on a word.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabviz.finetune.data.rows import read_class, read_classes, read_number, read_tags, read_text, read_words
from stabviz.methods.objective import (
    Objective,
    binary_cross_entropy_objective,
    cross_entropy_objective,
    squared_error_objective,
)
from stabviz.ops import cross_entropy
from stabviz.scores import classification_scores, entity_scores, multi_label_scores, regression_scores

Found = Sequence[tuple[np.ndarray, np.ndarray]]
"""(logits, labels) of each row, as `predict_logits` returns them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of task. A label is what a row's cell holds once it is read; encoded, it is numbers."""

    read_content: Callable = read_text
    """read_content(cell) -> text or words, and what is wrong with it or None."""
    read_label: Callable
    """read_label(cell, the data's own class names, words) -> label, and what is wrong with it or None."""
    labels: Callable[[list, list[str] | None, tuple[str, ...]], tuple[str, ...]]
    """labels(training's, the data's own class names, columns) -> what ids stand for; a ValueError says why
    these teach nothing."""
    names: Callable[[Any], Iterable[str]]
    """The names in a label, all of which training must know."""
    stratum: Callable[[Any], str]
    """What a split that is set aside keeps in proportion."""
    encode: Callable[[Any, dict[str, int]], Any]
    """encode(label, ids by name) -> its number or numbers."""
    number: str = "int64"
    several: bool = False
    """Whether a label is encoded as a list."""
    scale: Callable[[list], tuple[float, float]] = lambda labels: (0.0, 1.0)
    """Mean and standard deviation of training's numbers, which are taken out of them in training."""
    objective: Callable[[float, Tensor | None], Objective]
    """objective(label smoothing, class weights) -> what is minimised."""
    loss_unit: str = "nats"
    score: Callable[[Found, Any, tuple[str, ...]], tuple[dict, list]]
    """score(found, encoded rows, labels) -> scores, and the prediction of each row."""
    metrics: tuple[str, ...]
    """Scores that can choose the best weights; the first one does where none is named."""
    answer: Callable[[Tensor, Any, tuple[str, ...], tuple[float, float]], dict]
    """answer(a row's logits, its text or words, labels, scale) -> what `predict` shows of it."""

    def metric(self, name: str | None, labels: tuple[str, ...]) -> str:
        """Return the score that judges a run.

        Raises: ValueError if this kind of task has no such score
        """
        known = [one for one in self.metrics if one != "f1" or self.metrics[0] == "f1" or len(labels) == 2]
        if name is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"finetune: metric must be one of {', '.join(known)}; {hint}got {name!r}")
        return name or known[0]


# One class a text


def _class_labels(found: list[str], names: list[str] | None, columns: tuple[str, ...]) -> tuple[str, ...]:
    classes = set(found)
    if len(classes) < 2:
        raise ValueError(f"must have at least 2 classes; got {sorted(classes)}")
    return tuple(_sorted(classes) if names is None else names)


def _sorted(names: set[str]) -> list[str]:
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in names)
    return sorted(names, key=int) if numeric else sorted(names)


def _score_classes(found: Found, rows, labels: tuple[str, ...]) -> tuple[dict, list]:
    logits_NC, labels_N = _stacked(found)
    return classification_scores(logits_NC, labels_N.long(), labels), logits_NC.argmax(dim=-1).tolist()


def _answer_class(logits_NC: Tensor, text: str, labels: tuple[str, ...], scale) -> dict:
    probabilities = logits_NC[0].softmax(dim=-1).tolist()
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {
        "label": labels[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(labels, probabilities, strict=True)),
    }


# Any number of classes


def _several_labels(
    found: list[list[str]], names: list[str] | None, columns: tuple[str, ...]
) -> tuple[str, ...]:
    classes = {name for label in found for name in label}
    if not classes:
        raise ValueError("has no class in any training row")
    if len(columns) > 1:
        return columns
    return tuple(_sorted(classes) if names is None else names)


def _score_several(found: Found, rows, labels: tuple[str, ...]) -> tuple[dict, list]:
    logits_NC, labels_NC = _stacked(found)
    predicted = [[labels[i] for i in np.flatnonzero(row)] for row in (logits_NC > 0).numpy()]
    return multi_label_scores(logits_NC, labels_NC, labels), predicted


def _answer_several(logits_NC: Tensor, text: str, labels: tuple[str, ...], scale) -> dict:
    probabilities = logits_NC[0].sigmoid().tolist()
    by_name = dict(zip(labels, probabilities, strict=True))
    return {"labels": [name for name, p in by_name.items() if p > 0.5], "probabilities": by_name}


# A number


def _number_labels(found: list[float], names, columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(found)) < 2:
        raise ValueError(f"must have at least 2 different numbers; got {found[0]:g} in every row")
    return columns


def _mean_and_deviation(found: list[float]) -> tuple[float, float]:
    return float(np.mean(found)), float(np.std(found)) or 1.0  # of one row alone there is no deviation


def _score_numbers(found: Found, rows, labels: tuple[str, ...]) -> tuple[dict, list]:
    mean, deviation = rows.scale
    outputs_N1, labels_N = _stacked(found)
    predicted_N = mean + deviation * outputs_N1[:, 0].double().numpy()
    scores = regression_scores(predicted_N, mean + deviation * labels_N.double().numpy())
    return scores | {"loss": scores["mse"] / deviation**2}, predicted_N.tolist()


def _answer_number(
    outputs_N1: Tensor, text: str, labels: tuple[str, ...], scale: tuple[float, float]
) -> dict:
    return {labels[0]: scale[0] + scale[1] * float(outputs_N1[0, 0])}


# A tag a word


def _tag_labels(found: list[list[str]], names, columns: tuple[str, ...]) -> tuple[str, ...]:
    types = sorted({tag[2:] for tags in found for tag in tags if tag != "O"})
    if not types:
        raise ValueError("has no entity in training, only O")
    return ("O", *(f"B-{name}" for name in types), *(f"I-{name}" for name in types))


def _score_tags(found: Found, rows, labels: tuple[str, ...]) -> tuple[dict, list]:
    """Words without a word piece (cut off, or empty) count as "O"."""
    true, predicted = [], []
    for (logits, _), tags, words in zip(found, rows.tags, rows.labelled_words, strict=True):
        tag_of = dict(zip(words, logits.argmax(axis=-1).tolist(), strict=True))
        true.append([labels[i] for i in tags])
        predicted.append([labels[tag_of[w]] if w in tag_of else "O" for w in range(len(tags))])
    logits_NC, labels_N = _stacked(found)
    loss = {"loss_nats": float(cross_entropy(logits_NC, labels_N.long())[0])}
    return entity_scores(true, predicted) | loss, predicted


def _answer_tags(logits_NC: Tensor, words: list[str], labels: tuple[str, ...], scale) -> dict:
    tags = [labels[i] for i in logits_NC.argmax(dim=-1).tolist()]
    tags += ["O"] * (len(words) - len(tags))  # words that max_length cut off
    entities: list[dict[str, str]] = []
    for word, tag, before in zip(words, tags, ["O", *tags], strict=False):
        # An I- after another type, or after O, begins an entity: as `entity_scores` counts it.
        if tag.startswith("I-") and before[2:] == tag[2:]:
            entities[-1]["text"] += f" {word}"
        elif tag != "O":
            entities.append({"type": tag[2:], "text": word})
    return {"words": words, "tags": tags, "entities": entities}


def _stacked(found: Found) -> tuple[Tensor, Tensor]:
    logits, labels = zip(*found, strict=True)
    return torch.from_numpy(np.concatenate(logits)), torch.from_numpy(np.concatenate(labels))


KINDS = {
    "classes": Kind(
        read_label=read_class,
        labels=_class_labels,
        names=lambda label: [label],
        stratum=lambda label: label,
        encode=lambda label, ids: ids[label],
        objective=cross_entropy_objective,
        score=_score_classes,
        metrics=("accuracy", "macro_f1", "balanced_accuracy", "matthews", "f1", "ece", "loss_nats"),
        answer=_answer_class,
    ),
    "multi_label": Kind(
        read_label=read_classes,
        labels=_several_labels,
        names=lambda label: label,
        stratum=" ".join,
        encode=lambda label, ids: [int(name in label) for name in ids],
        several=True,
        objective=lambda smoothing, weights: binary_cross_entropy_objective(weights),
        score=_score_several,
        metrics=("micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "loss_nats"),
        answer=_answer_several,
    ),
    "regression": Kind(
        read_label=read_number,
        labels=_number_labels,
        names=lambda label: [],
        stratum=lambda label: "",
        encode=lambda label, ids: label,
        number="float64",
        scale=_mean_and_deviation,
        objective=lambda smoothing, weights: squared_error_objective(),
        loss_unit="",
        score=_score_numbers,
        metrics=("pearson", "spearman", "r2", "mse", "rmse", "mae", "loss"),
        answer=_answer_number,
    ),
    "tags": Kind(
        read_content=read_words,
        read_label=read_tags,
        labels=_tag_labels,
        names=lambda label: label,
        stratum=lambda label: " ".join(sorted({tag[2:] for tag in label if tag != "O"})),
        encode=lambda label, ids: [ids[tag] for tag in label],
        several=True,
        objective=cross_entropy_objective,
        score=_score_tags,
        metrics=("f1", "precision", "recall", "tag_accuracy", "loss_nats"),
        answer=_answer_tags,
    ),
}
"""Kind of task -> what it is; `DataConfig.kind` names it by the column that is given."""
