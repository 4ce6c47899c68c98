"""Scores of tagged words, by whole entities."""

from collections.abc import Sequence
from itertools import chain

from nervaluate import Evaluator

from stabviz.scores.classes import precision_recall_f1
from stabviz.scores.over_seeds import failed


def entity_scores(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict:
    """Score predicted BIO tags by whole entities: the same words with the same type, and nothing less.

    An I- tag without an entity of its type before it begins one, in labels and predictions alike.
    "tag_accuracy" is what one reads when tags are flattened and compared word by word: mostly a count of O.

    Units:  shares in [0, 1]; no entity on one side gives 0.0
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
    words = sum(map(len, true))
    same = sum(a == b for a, b in zip(chain(*true), chain(*predicted), strict=True))
    by_type = {name: _ratios(found["entities"][name]["strict"]) for name in types}
    scores = {
        **_ratios(found["overall"]["strict"]),
        "by_type": by_type,
        "tag_accuracy": same / words if words else 0.0,
        "rows": len(true),
        "words": words,
    }
    return scores | {"failed": failed(scores, 0.0)}


def _ratios(counts) -> dict:
    return precision_recall_f1(counts.correct, counts.actual, counts.possible)


def _check_tags(true, predicted) -> None:
    if not true or len(true) != len(predicted):
        wanted, got = "as many sentences as true, one or more", f"{len(predicted)} and {len(true)}"
        raise ValueError(f"entity_scores: predicted must hold the tags of {wanted}; got {got}")
    for row, (tags, answer) in enumerate(zip(true, predicted, strict=True)):
        if len(tags) != len(answer):
            got = f"{len(answer)} tags for {len(tags)} words in sentence {row}"
            raise ValueError(f"entity_scores: predicted must hold one tag a word; got {got}")
        for tag in tags + answer:
            if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
                got = f"{tag!r} in sentence {row}"
                raise ValueError(f"entity_scores: a tag must be O, B-TYPE or I-TYPE; got {got}")
