"""Checks of lesson 12: labels on word pieces, strict F1, the loss of the words behind labelled padding."""

import math

from stabviz.course.exercises import ExerciseFailed, check, expect


def _by_position(word_ids, tags):
    labels = [-100, *tags]
    return (labels + [-100] * len(word_ids))[: len(word_ids)]


def _on_every_piece(word_ids, tags):
    return [-100 if word is None else tags[word] for word in word_ids]


def _each_tag_once(word_ids, tags):
    labels, seen = [], set()
    for word in word_ids:
        labels.append(-100 if word is None or tags[word] in seen else tags[word])
        seen.add(None if word is None else tags[word])
    return labels


def _outside_is_zero(word_ids, tags):
    pairs = zip(word_ids, [None, *word_ids], strict=False)
    return [0 if word is None or word == last else tags[word] for word, last in pairs]


@check("12-align", wrong=[_by_position, _on_every_piece, _each_tag_once, _outside_is_zero])
def align_puts_tags_on_first_pieces(solution):
    for words, word_ids, tags, labels in (
        ("two words, the second in three pieces", [0, 1, 1, 1, None], [0, 3], [0, 3, -100, -100, -100]),
        ("two neighbours with one tag", [0, 0, 1, 2, None], [5, 0, 5], [5, -100, 0, 5, -100]),
        ("two padded pieces at the end", [0, None, None, None], [2], [2, -100, -100, -100]),
    ):  # the first piece, as the last one, is of the tokenizer: it belongs to no word
        expect(words, list(solution([None, *word_ids], tags)), [-100, *labels])


def _spans(tags):
    found = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append([i, i, tag[2:]])
        elif tag.startswith("I-"):
            found[-1][1] = i
    return {tuple(span) for span in found}


def _ratio(a, b):
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


def _by_tag(true, predicted):
    return _ratio(*({(i, tag) for i, tag in enumerate(tags) if tag != "O"} for tags in (true, predicted)))


def _without_type(true, predicted):
    return _ratio({span[:2] for span in _spans(true)}, {span[:2] for span in _spans(predicted)})


def _first_words_only(true, predicted):
    return _ratio(*({(first, kind) for first, _, kind in _spans(tags)} for tags in (true, predicted)))


def _recall(true, predicted):
    a, b = _spans(true), _spans(predicted)
    return len(a & b) / len(a) if a else 0.0


def _neighbours_as_one(true, predicted):
    def joined(tags):
        found, before = [], ""
        for i, tag in enumerate(tags):
            if tag != "O" and tag[2:] == before:
                found[-1][1] = i
            elif tag != "O":
                found.append([i, i, tag[2:]])
            before = tag[2:]
        return {tuple(span) for span in found}

    return _ratio(joined(true), joined(predicted))


@check("12-strict-f1", wrong=[_by_tag, _without_type, _first_words_only, _recall, _neighbours_as_one])
def strict_f1_counts_whole_entities(solution):
    names = ["B-PER", "I-PER", "O", "B-ORG"]
    expect("all right", solution(names, names), 1.0)
    expect("one of two ends too early", solution(names, ["B-PER", "O", "O", "B-ORG"]), 0.5)
    expect("one of two has the wrong type", solution(names, ["B-PER", "I-PER", "O", "B-LOC"]), 0.5)
    expect("one of two, and nothing else was said", solution(names, ["B-PER", "I-PER", "O", "O"]), 2 / 3)
    words = "two neighbours told apart, where one long name was said"
    expect(words, solution(["B-PER", "B-PER", "O"], ["B-PER", "I-PER", "O"]), 0.0)
    expect("no entity on either side", solution(["O", "O"], ["O", "O"]), 0.0)


@check(
    "12-real-loss",
    wrong=[
        lambda loss, padding_loss, real, padding: loss * (real + padding) / real if real else math.nan,
        lambda loss, padding_loss, real, padding: loss - padding_loss if real else math.nan,
        lambda loss, padding_loss, real, padding: 2 * loss - padding_loss if real else math.nan,
        lambda loss, padding_loss, real, padding: loss + (loss - padding_loss) * padding / max(real, 1),
    ],
)
def real_loss_undoes_the_mean(solution):
    expect("30 words at 0.5, 10 padded at 0.1", solution(0.4, 0.1, 30, 10), 0.5)
    expect("30 words at 0.8, 90 padded at 0", solution(0.2, 0.0, 30, 90), 0.8)
    expect("no padding", solution(0.7, 0.0, 12, 0), 0.7)
    if not math.isnan(solution(0.3, 0.3, 0, 10)):
        raise ExerciseFailed(f"no words: expected nan, got {solution(0.3, 0.3, 0, 10)!r}: no mean exists")
