"""What a fine-tuned model is worth: scores of classes and of entities, and what several seeds say together.

A ratio whose denominator is zero is 0.0: the precision of a class that was never predicted, the recall of one
that never occurs, the F1 of both. Axis letters: R runs, N inputs, C classes.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from nervaluate import Evaluator

ECE_BINS = 15
"""Equal-width bins of confidence, the number of Guo et al. 2017."""


def classification_scores(logits_NC, labels_N, names: Sequence[str]) -> dict:
    """Score predictions of one class an input; a row with a non-finite logit predicts nothing and is wrong.

    Macro F1 averages over the classes that occur among labels or predictions, as scikit-learn's does. Rows of
    "confusion" are the true classes, columns the predicted ones; rows without a prediction are not in it.
    "failed" is what `failed` says against the majority of these labels.

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
    logits_NC, labels_N = _numbers(logits_NC), np.asarray(labels_N)
    names = list(names)
    _check_rows(logits_NC, labels_N, names)
    finite_N = np.isfinite(logits_NC).all(axis=1)
    predicted_N = np.where(finite_N, logits_NC.argmax(axis=1), -1)
    confusion_CC = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion_CC, (labels_N[finite_N], predicted_N[finite_N]), 1)
    support_C = np.bincount(labels_N, minlength=len(names))
    by_class = {
        name: _ratios(int(confusion_CC[c, c]), int(confusion_CC[:, c].sum()), int(support_C[c]))
        for c, name in enumerate(names)
    }
    present = [row["f1"] for row in by_class.values() if row["support"] or row["predicted"]]
    log_p_NC = _log_softmax(logits_NC)
    scores = {
        "accuracy": float(np.mean(predicted_N == labels_N)),
        "macro_f1": float(np.mean(present)),
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


def expected_calibration_error(probabilities_NC, labels_N, bins: int = ECE_BINS) -> float:
    """Average the gap between confidence and accuracy over bins of confidence, each weighted by its rows.

    A row goes into the bin ((m - 1) / bins, m / bins] that holds its largest probability. NaN if a
    probability is not finite.

    Shapes: probabilities_NC (N, C), labels_N (N,)
    Raises: ValueError if bins < 1 or there are no rows
    Source: Guo et al. 2017, arXiv:1706.04599, section 2, with 15 bins as there
    Lesson: 11-classification

    >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 12)  # 90 % sure, half of it right
    0.4
    """
    if bins < 1:
        raise ValueError(f"expected_calibration_error: bins must be at least 1; got {bins!r}")
    probabilities_NC, labels_N = _numbers(probabilities_NC), np.asarray(labels_N)
    if probabilities_NC.ndim != 2 or labels_N.shape != probabilities_NC.shape[:1] or not labels_N.size:
        raise ValueError(
            "expected_calibration_error: probabilities_NC must be (N, C) with N >= 1 labels; "
            f"got {probabilities_NC.shape} and {labels_N.shape}"
        )
    if not np.isfinite(probabilities_NC).all():
        return math.nan
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.searchsorted(np.arange(1, bins) / bins, confidence_N, side="left")
    gap = np.zeros(bins)
    np.add.at(gap, bin_N, right_N - confidence_N)  # rows x (accuracy - mean confidence), bin by bin
    return float(np.abs(gap).sum() / len(labels_N))


def entity_scores(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict:
    """Score predicted BIO tags by whole entities: only the same words with the same type count (strict
    spans).

    An I- tag without an entity of its type before it begins one, in labels and predictions alike.
    "tag_accuracy" is what one reads when tags are flattened and compared word by word: mostly a count of O.

    Units:  shares in [0, 1]; no entity on one side gives 0.0, see the module
    Raises: ValueError for no sentences, sentences of unequal length, or a tag that is not O, B-TYPE or I-TYPE
    Source: strict evaluation of SemEval 2013 task 9.1, as nervaluate computes it
    Lesson: 12-entities

    >>> scores = entity_scores([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "B-LOC"]])
    >>> scores["f1"], scores["tag_accuracy"], scores["by_type"]["PER"]["f1"]
    (0.5, 0.75, 0.0)
    """
    true, predicted = [list(tags) for tags in true], [list(tags) for tags in predicted]
    _check_tags(true, predicted)
    types = sorted({tag[2:] for tags in true + predicted for tag in tags if tag != "O"})
    found = Evaluator(true, predicted, tags=types, loader="list").evaluate()
    every = found["overall"]["strict"]
    words = sum(map(len, true))
    same = sum(
        a == b for tags, said in zip(true, predicted, strict=True) for a, b in zip(tags, said, strict=True)
    )
    by_type = {name: found["entities"][name]["strict"] for name in types}
    scores = {
        **_ratios(every.correct, every.actual, every.possible),
        "by_type": {name: _ratios(one.correct, one.actual, one.possible) for name, one in by_type.items()},
        "tag_accuracy": same / words if words else 0.0,
        "rows": len(true),
        "words": words,
    }
    return scores | {"failed": failed(scores, 0.0)}


def headline(scores: dict) -> tuple[str, float]:
    """Return name and value of the score that a run is judged by: accuracy of classes, F1 of entities.

    >>> headline({"precision": 0.5, "recall": 1.0, "f1": 0.25})
    ('f1', 0.25)
    """
    for name in ("accuracy", "f1"):
        if name in scores:
            return name, float(scores[name])
    raise ValueError(f"headline: scores must hold 'accuracy' or 'f1'; got {sorted(scores)}")


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


def failed(scores: dict, majority_share: float) -> bool:
    """Tell whether a run failed: no better than always giving the majority answer, or not finite.

    For entities the majority answer is O everywhere, which finds nothing: F1 must be above 0, whatever
    `majority_share` is.

    Raises: ValueError unless majority_share is in [0, 1]
    Source: Mosbach et al. 2021, arXiv:2006.04884, section 3: accuracy at the end of training less than or
            equal to that of a majority classifier; deviation: a score or loss that is not finite fails as
            well
    Lesson: 11-classification

    >>> failed({"accuracy": 0.5}, majority_share=0.5), failed({"accuracy": 0.51}, majority_share=0.5)
    (True, False)
    """
    if not 0 <= majority_share <= 1:
        raise ValueError(f"failed: majority_share must be in [0, 1]; got {majority_share!r}")
    name, score = headline(scores)
    baseline = majority_share if name == "accuracy" else 0.0
    finite = math.isfinite(score) and math.isfinite(scores.get("loss_nats", 0.0))
    return not finite or score <= baseline


def spread(scores_by_seed: Sequence[dict], key: str, *, majority_share: float | None = None) -> dict:
    """Summarise one score over seeds: runs, mean, sample standard deviation, min and max; failed runs if
    asked.

    The standard deviation divides by runs - 1, and is NaN for one run: one seed says nothing about spread.
    One NaN makes every figure NaN; failed runs are counted, never left out.

    Raises: ValueError for no runs, or a run without this score
    Lesson: 11-classification

    >>> spread([{"accuracy": 0.75}, {"accuracy": 0.25}], "accuracy", majority_share=0.25)["failed"]
    1
    """
    if not scores_by_seed:
        raise ValueError("spread: scores_by_seed must hold at least one run; got none")
    for run, scores in enumerate(scores_by_seed):
        if key not in scores:
            raise ValueError(
                f"spread: key must be a score of every run; got {key!r}, run {run} has {sorted(scores)}"
            )
    values_R = np.array([scores[key] for scores in scores_by_seed], dtype=np.float64)
    count = {}
    if majority_share is not None:
        count["failed"] = sum(failed(scores, majority_share) for scores in scores_by_seed)
    return {
        "runs": len(values_R),
        "mean": float(values_R.mean()),
        "std": float(values_R.std(ddof=1)) if len(values_R) > 1 else math.nan,
        "min": float(values_R.min()),
        "max": float(values_R.max()),
        **count,
    }


def churn(predictions_RN) -> float:
    """Return the share of inputs on which two runs disagree, averaged over all pairs of runs.

    An input's prediction may be a class or the tags of a sentence: those of a sentence agree if all do.

    Shapes: predictions_RN: for each of R >= 2 runs N predictions in the same order of inputs
    Raises: ValueError for fewer than two runs, no inputs, or runs of unequal length
    Source: Milani Fard et al. 2016, Launch and Iterate: Reducing Prediction Churn, for one pair of models
    Lesson: 11-classification

    >>> round(churn([[0, 1, 2], [0, 1, 1], [0, 2, 1]]), 4)
    0.4444
    """
    runs = [[_hashable(prediction) for prediction in predictions] for predictions in predictions_RN]
    lengths = sorted(set(map(len, runs)))
    if len(runs) < 2 or len(lengths) != 1 or lengths == [0]:
        raise ValueError(
            "churn: predictions_RN must hold two or more runs over the same inputs; "
            f"got {len(runs)} runs of {lengths} inputs"
        )
    code = {prediction: n for n, prediction in enumerate(dict.fromkeys(itertools.chain.from_iterable(runs)))}
    codes_RN = np.array([[code[prediction] for prediction in predictions] for predictions in runs])
    return float(np.mean([np.mean(a_N != b_N) for a_N, b_N in itertools.combinations(codes_RN, 2)]))


def _ratios(correct: int, predicted: int, support: int) -> dict:
    precision = correct / predicted if predicted else 0.0
    recall = correct / support if support else 0.0
    f1 = 2 * correct / (predicted + support) if predicted + support else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": support, "predicted": predicted}


def _log_softmax(logits_NC):
    with np.errstate(invalid="ignore"):  # inf - inf: such a row is not finite, and its NaN is the answer
        shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
        return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))


def _numbers(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)


def _hashable(prediction):
    if isinstance(prediction, (np.ndarray, torch.Tensor)):
        prediction = prediction.tolist()
    return tuple(prediction) if isinstance(prediction, list) else prediction


def _check_rows(logits_NC, labels_N, names) -> None:
    if logits_NC.ndim != 2 or not logits_NC.size:
        raise ValueError(
            "classification_scores: logits_NC must be (N, C) with at least one row; "
            f"got {logits_NC.shape}. Is the split empty?"
        )
    N, C = logits_NC.shape
    if labels_N.shape != (N,) or labels_N.dtype.kind not in "iu":
        raise ValueError(
            f"classification_scores: labels_N must be {N} integers, one a row; "
            f"got {labels_N.dtype} {labels_N.shape}"
        )
    if len(names) != C or len(set(names)) != C:
        raise ValueError(
            f"classification_scores: names must be {C} distinct texts, one a class; got {names!r}"
        )
    wrong = labels_N[(labels_N < 0) | (labels_N >= C)]
    if wrong.size:
        raise ValueError(f"classification_scores: labels_N must be in 0..{C - 1}; got {wrong[0]}")


def _check_tags(true, predicted) -> None:
    if not true or len(true) != len(predicted):
        raise ValueError(
            "entity_scores: predicted must hold the tags of as many sentences as true, one or more; "
            f"got {len(predicted)} and {len(true)}"
        )
    for row, (tags, said) in enumerate(zip(true, predicted, strict=True)):
        if len(tags) != len(said):
            raise ValueError(
                "entity_scores: predicted must hold one tag a word; "
                f"got {len(said)} tags for {len(tags)} words in sentence {row}"
            )
        for tag in tags + said:
            if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
                raise ValueError(
                    f"entity_scores: a tag must be O, B-TYPE or I-TYPE; got {tag!r} in sentence {row}"
                )
