"""Scores of any number of classes an input. Axis letters: N inputs, C classes."""

from collections.abc import Sequence

import numpy as np

from stabviz.scores.calibration import float64
from stabviz.scores.classes import precision_recall_f1


def multi_label_scores(logits_NC, labels_NC, names: Sequence[str]) -> dict:
    """Score yes or no for each class of each input: yes where the logit is above 0.

    A logit that is not finite says no, and is wrong. Micro figures count all decisions together, macro F1
    averages over the classes. "subset_accuracy" asks for all classes of an input at once, "hamming_loss" is
    the share of wrong decisions. A run "failed" if it is not finite, or its micro F1 is no better than that
    of always saying the classes that most inputs have.

    Shapes: logits_NC (N, C) array or tensor, labels_NC (N, C) of 0 and 1
    Units:  loss_nats in nats a decision, NaN if a logit is not finite; the rest are shares in [0, 1]
    Raises: ValueError for no rows, shapes that differ, a label that is not 0 or 1, or names that are not C
            distinct texts

    >>> scores = multi_label_scores([[2.0, -1.0], [1.0, -1.0]], [[1, 0], [1, 1]], ["late", "lost"])
    >>> scores["micro_f1"], scores["subset_accuracy"], scores["hamming_loss"]
    (0.8, 0.5, 0.25)
    """
    logits_NC, labels_NC, names = float64(logits_NC), float64(labels_NC), list(names)
    _check(logits_NC, labels_NC, names)
    finite_NC = np.isfinite(logits_NC)
    says_NC, true_NC = finite_NC & (logits_NC > 0), labels_NC > 0
    wrong_NC = (says_NC != true_NC) | ~finite_NC
    by_class = {
        name: precision_recall_f1(
            int((says_NC & true_NC)[:, c].sum()), int(says_NC[:, c].sum()), int(true_NC[:, c].sum())
        )
        for c, name in enumerate(names)
    }
    micro = _micro(says_NC, true_NC)
    usual_NC = np.broadcast_to(true_NC.mean(axis=0) > 0.5, true_NC.shape)
    constant_f1 = _micro(usual_NC, true_NC)["f1"]
    with np.errstate(invalid="ignore"):  # of what is not finite the loss is NaN, and that is the answer
        loss_NC = np.logaddexp(0.0, logits_NC) - logits_NC * labels_NC
    return {
        "micro_f1": micro["f1"],
        "macro_f1": float(np.mean([row["f1"] for row in by_class.values()])),
        "precision": micro["precision"],
        "recall": micro["recall"],
        "subset_accuracy": float(np.mean(~wrong_NC.any(axis=1))),
        "hamming_loss": float(np.mean(wrong_NC)),
        "loss_nats": float(np.mean(loss_NC)) if finite_NC.all() else float("nan"),
        "constant_f1": constant_f1,
        "rows": len(labels_NC),
        "non_finite_rows": int((~finite_NC).any(axis=1).sum()),
        "by_class": by_class,
        "failed": not finite_NC.all() or micro["f1"] <= constant_f1,
    }


def _micro(says_NC, true_NC) -> dict:
    return precision_recall_f1(int((says_NC & true_NC).sum()), int(says_NC.sum()), int(true_NC.sum()))


def _check(logits_NC, labels_NC, names) -> None:
    if logits_NC.ndim != 2 or not logits_NC.size:
        got = f"{logits_NC.shape}. Is the split empty?"
        raise ValueError(f"multi_label_scores: logits_NC must be (N, C) with at least one row; got {got}")
    if labels_NC.shape != logits_NC.shape or not np.isin(labels_NC, (0, 1)).all():
        wanted = f"0 or 1, of shape {logits_NC.shape}"
        raise ValueError(f"multi_label_scores: labels_NC must be {wanted}; got shape {labels_NC.shape}")
    if len(names) != logits_NC.shape[1] or len(set(names)) != len(names):
        wanted = f"{logits_NC.shape[1]} distinct texts, one a class"
        raise ValueError(f"multi_label_scores: names must be {wanted}; got {names!r}")
