"""What several seeds say together: which score judges a run, which runs failed, how far apart they lie."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

LOWER_IS_BETTER = ("loss_nats", "loss", "ece", "hamming_loss", "mse", "rmse", "mae")
"""Scores of which less is more."""


def headline(scores: dict) -> tuple[str, float]:
    """Return name and value of the score that a run is judged by: accuracy of classes, F1 of entities.

    >>> headline({"precision": 0.5, "recall": 1.0, "f1": 0.25})
    ('f1', 0.25)
    """
    for name in ("accuracy", "f1"):
        if name in scores:
            return name, float(scores[name])
    raise ValueError(f"headline: scores must hold 'accuracy' or 'f1'; got {sorted(scores)}")


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
    """Summarise one score over seeds: runs, mean, sample standard deviation, min and max.

    With `majority_share` the failed runs are counted too; none is left out. The standard deviation divides by
    runs - 1, and is NaN for one run: one seed says nothing about spread. One NaN makes every figure NaN.

    Raises: ValueError for no runs, or a run without this score
    Lesson: 11-classification

    >>> spread([{"accuracy": 0.75}, {"accuracy": 0.25}], "accuracy", majority_share=0.25)["failed"]
    1
    """
    if not scores_by_seed:
        raise ValueError("spread: scores_by_seed must hold at least one run; got none")
    for run, scores in enumerate(scores_by_seed):
        if key not in scores:
            got = f"{key!r}, run {run} has {sorted(scores)}"
            raise ValueError(f"spread: key must be a score of every run; got {got}")
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


def _hashable(prediction):
    if isinstance(prediction, (np.ndarray, torch.Tensor)):
        prediction = prediction.tolist()
    return tuple(prediction) if isinstance(prediction, list) else prediction
