"""Scores of one class an input. Axis letters: N inputs, C classes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stabviz.scores.calibration import expected_calibration_error, float64
from stabviz.scores.over_seeds import failed


def classification_scores(logits_NC, labels_N, names: Sequence[str]) -> dict:
    """Score predictions of one class an input; a row with a non-finite logit predicts nothing and is wrong.

    Macro F1 averages over the classes that occur among labels or predictions, as scikit-learn's does. Rows of
    "confusion" are the true classes, columns the predicted ones; rows without a prediction are not in it.
    "failed" is what `failed` says against the majority of these labels. With two classes "f1" is that of the
    second. Balanced accuracy is the mean recall of the classes that occur; "matthews" is the correlation of
    labels and predictions, 0 where one of them is always the same.

    Shapes: logits_NC (N, C) array or tensor, labels_N (N,) int in 0..C-1
    Units:  loss_nats in nats a row, NaN if a logit is not finite; the rest are shares in [0, 1]
    Raises: ValueError for no rows, a wrong shape, a label outside 0..C-1, or names that are not C distinct
            texts
    Lesson: 11-classification

    >>> logits = [[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.5, 0.0]]
    >>> scores = classification_scores(logits, [0, 0, 1, 1], ["no", "yes"])
    >>> scores["accuracy"], round(scores["macro_f1"], 4), scores["confusion"]
    (0.75, 0.7333, [[2, 0], [1, 1]])
    """
    logits_NC, labels_N = float64(logits_NC), np.asarray(labels_N)
    names = list(names)
    _check_rows(logits_NC, labels_N, names)
    finite_N = np.isfinite(logits_NC).all(axis=1)
    predicted_N = np.where(finite_N, logits_NC.argmax(axis=1), -1)
    confusion_CC = np.zeros((len(names), len(names)), dtype=np.int64)
    # add.at counts a pair each time that it comes; `confusion_CC[pairs] += 1` would count it once
    np.add.at(confusion_CC, (labels_N[finite_N], predicted_N[finite_N]), 1)
    support_C = np.bincount(labels_N, minlength=len(names))
    by_class = {
        name: precision_recall_f1(int(confusion_CC[c, c]), int(confusion_CC[:, c].sum()), int(support_C[c]))
        for c, name in enumerate(names)
    }
    present = [row["f1"] for row in by_class.values() if row["support"] or row["predicted"]]
    log_p_NC = _log_softmax(logits_NC)
    recalls = [row["recall"] for row in by_class.values() if row["support"]]
    scores: dict[str, Any] = {
        "accuracy": float(np.mean(predicted_N == labels_N)),
        "macro_f1": float(np.mean(present)),
        "balanced_accuracy": float(np.mean(recalls)),
        "matthews": _matthews(confusion_CC, support_C, int((~finite_N).sum())),
        **({"f1": by_class[names[1]]["f1"]} if len(names) == 2 else {}),
        "ece": expected_calibration_error(np.exp(log_p_NC), labels_N),
        "loss_nats": float(-np.mean(log_p_NC[np.arange(len(labels_N)), labels_N])),
        "majority_share": majority_share(labels_N),
        "rows": len(labels_N),
        "non_finite_rows": int((~finite_N).sum()),
        "classes": names,
        "confusion": confusion_CC.tolist(),
        "by_class": by_class,
    }
    return scores | {"failed": failed(scores, scores["majority_share"])}


def _matthews(confusion_CC, support_C, lost: int) -> float:
    """Gorodkin's correlation for C classes; rows without a prediction are a predicted class of their own."""
    N = support_C.sum()
    predicted_C = np.append(confusion_CC.sum(axis=0), lost).astype(np.float64)
    true_C = np.append(support_C, 0).astype(np.float64)
    covariance = np.trace(confusion_CC) * N - true_C @ predicted_C
    spread = np.sqrt((N**2 - predicted_C @ predicted_C) * (N**2 - true_C @ true_C))
    return float(covariance / spread) if spread else 0.0


def majority_share(labels_N) -> float:
    """Return the share of the most frequent label: the accuracy of a model that always says it.

    Raises: ValueError if there are no labels

    >>> majority_share(["a", "b", "a", "a"])
    0.75
    """
    counts = Counter(np.asarray(labels_N).tolist())
    if not counts:
        raise ValueError("majority_share: labels_N must hold at least one label; got none")
    return max(counts.values()) / counts.total()


def precision_recall_f1(correct: int, predicted: int, support: int) -> dict:
    """Return precision, recall and F1 of counts; a ratio whose denominator is zero is 0.0."""
    precision = correct / predicted if predicted else 0.0
    recall = correct / support if support else 0.0
    f1 = 2 * correct / (predicted + support) if predicted + support else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": support, "predicted": predicted}


def _log_softmax(logits_NC):
    with np.errstate(invalid="ignore"):  # inf - inf: such a row is not finite, and its NaN is the answer
        shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
        return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))


def _check_rows(logits_NC, labels_N, names) -> None:
    if logits_NC.ndim != 2 or not logits_NC.size:
        got = f"{logits_NC.shape}. Is the split empty?"
        raise ValueError(f"classification_scores: logits_NC must be (N, C) with at least one row; got {got}")
    N, C = logits_NC.shape
    if labels_N.shape != (N,) or labels_N.dtype.kind not in "iu":
        got = f"{labels_N.dtype} {labels_N.shape}"
        raise ValueError(f"classification_scores: labels_N must be {N} integers, one a row; got {got}")
    if len(names) != C or len(set(names)) != C:
        wanted = f"{C} distinct texts, one a class"
        raise ValueError(f"classification_scores: names must be {wanted}; got {names!r}")
    wrong = labels_N[(labels_N < 0) | (labels_N >= C)]
    if wrong.size:
        raise ValueError(f"classification_scores: labels_N must be in 0..{C - 1}; got {wrong[0]}")
