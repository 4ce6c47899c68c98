"""What a model gets that knows no language: the scores that a fine-tuned one has to beat."""

import warnings
from collections import Counter
from typing import Any

import numpy as np

from stabviz.finetune.data.splits import Splits
from stabviz.scores import classification_scores, entity_scores, multi_label_scores, regression_scores
from stabviz.seeds import integer

MOST_ROWS = 20_000
"""Training rows that a bag of words is fitted on: more would take longer than a glance is worth."""
UNSEEN = -30.0
"""Log-probability of a class that the fitted rows do not have."""


def baseline_scores(splits: Splits, seed: int = 0) -> dict[str, dict]:
    """Fit on the training rows what knows no language, and score it on the test rows.

    Of texts: the most frequent class (of a number: the mean), and a linear model on tf-idf of words and pairs
    of words, fitted on at most MOST_ROWS rows that the seed draws. Of words: each one's most frequent tag, O
    for a word that training does not have.

    Units:  as the functions of `stabviz.scores`, whose plain numbers are kept; "problem" says why there are
            none
    """
    if splits.kind == "tags":
        return {"word lookup": _numbers(_word_lookup(splits))}
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    train, linear = splits.train, LogisticRegression(C=10.0, max_iter=300)
    if len(train) > MOST_ROWS:
        order = np.random.default_rng(integer(seed, "baseline")).permutation(len(train))
        train = train.select(sorted(order[:MOST_ROWS]))
    bag = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)  # said once, it says nothing
    fitted: dict[str, Any] = {
        "classes": {
            "majority": DummyClassifier(strategy="prior"),
            "tf-idf + logistic regression": make_pipeline(bag, linear),
        },
        "multi_label": {
            "majority": OneVsRestClassifier(DummyClassifier(strategy="prior")),
            "tf-idf + logistic regression": make_pipeline(bag, OneVsRestClassifier(linear)),
        },
        "regression": {"mean": DummyRegressor(), "tf-idf + ridge regression": make_pipeline(bag, Ridge())},
    }[splits.kind]
    return {name: _numbers(_fitted(model, train, splits)) for name, model in fitted.items()}


def _fitted(model: Any, train: Any, splits: Splits) -> dict:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near its optimum is near enough
        warnings.filterwarnings("ignore", "Label .* is present in all|Label not .* is present in all")
        try:
            model.fit(_texts(train), np.array(train["label"][:]))
        except ValueError as error:  # no word comes twice, or there are only marks
            return {"problem": str(error)}
    texts, labels = _texts(splits.test), np.array(splits.test["label"][:])
    if splits.kind == "regression":
        return regression_scores(model.predict(texts), labels)
    if splits.kind == "multi_label":
        p_NC = np.clip(model.predict_proba(texts), 1e-12, 1 - 1e-12)
        return multi_label_scores(np.log(p_NC) - np.log1p(-p_NC), labels, splits.labels)
    log_p_NC = np.full((len(texts), len(splits.labels)), UNSEEN)
    log_p_NC[:, model.classes_] = np.maximum(model.predict_log_proba(texts), UNSEEN)
    return classification_scores(log_p_NC, labels, splits.labels)


def _texts(rows: Any) -> list[str]:
    if "text_pair" not in rows.column_names:
        return rows["text"][:]
    return [f"{first}\n{second}" for first, second in zip(rows["text"], rows["text_pair"], strict=True)]


def _word_lookup(splits: Splits) -> dict:
    seen: dict[str, Counter] = {}
    for words, tags in zip(splits.train["words"], splits.train["tags"], strict=True):
        for word, tag in zip(words, tags, strict=True):
            seen.setdefault(word.lower(), Counter())[splits.labels[tag]] += 1
    tag_of = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    true = [[splits.labels[tag] for tag in tags] for tags in splits.test["tags"]]
    return entity_scores(
        true, [[tag_of.get(word.lower(), "O") for word in words] for words in splits.test["words"]]
    )


def _numbers(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if isinstance(value, float | str)}
