"""Checks of lesson 12: two runs that decide, labels on word pieces, strict F1, the figures of a tagger."""

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision


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


RUNS = {
    "known messages, other known names": ("finds many", "finds many"),
    "known messages, new names": ("finds few", "finds many"),
    "new messages, known names": ("finds many", "finds few"),
    "new messages, other new names": ("finds few", "finds few"),
    "new messages and names, another seed": ("finds few", "finds few"),
}
"""What A, who blames the names, and B, who blames the wording, predict of each run."""
DECIDING = {name: said for name, said in RUNS.items() if said[0] != said[1]}
ABOUT = dict.fromkeys(DECIDING, "A asks whether its names are known, B whether its messages are")


@check(
    "12-decide",
    wrong=[
        lambda: {name: ends[::-1] for name, ends in DECIDING.items()},
        lambda: {
            "known messages, new names": ("finds few", "finds many"),
            "new messages, other new names": ("finds few", "finds many"),
        },
        lambda: {
            "known messages, other known names": ("finds many", "finds many"),
            "new messages and names, another seed": ("finds few", "finds few"),
        },
        lambda: dict.fromkeys(RUNS, ("finds few", "finds many")),
        lambda: dict.fromkeys(DECIDING, "finds few"),
        lambda: tuple(DECIDING),
    ],
)
def runs_decide_where_names_and_wording_predict_different_scores(solution):
    expect_decision(solution(), stories=("A", "B"), runs=RUNS, because=ABOUT)


def _fault(loss_64, loss_128, o_share, tags_right, f1_known, f1_new):
    if abs(loss_64 - loss_128) > 0.01 * max(loss_64, loss_128):
        return "padding counts"
    if tags_right < o_share + 0.02 and f1_known < 0.1:
        return "says O"
    return "remembers names" if f1_new < f1_known / 2 else "nothing found"


def _only_a_falling_loss(loss_64, loss_128, *others):
    return _fault(loss_64, min(loss_64, loss_128), *others)


def _absolute_difference(loss_64, loss_128, *others):
    counts = abs(loss_64 - loss_128) > 0.01
    return "padding counts" if counts else _fault(loss_64, loss_64, *others)


def _a_high_share_is_enough(loss_64, loss_128, o_share, tags_right, f1_known, f1_new):
    found = _fault(loss_64, loss_128, o_share, tags_right, f1_known, f1_new)
    return "nothing found" if found == "says O" and tags_right > 0.85 else found


def _accuracy_alone(loss_64, loss_128, o_share, tags_right, f1_known, f1_new):
    found = _fault(loss_64, loss_128, o_share, tags_right, f1_known, f1_new)
    return "says O" if found != "padding counts" and tags_right < o_share + 0.02 else found


def _names_first(loss_64, loss_128, o_share, tags_right, f1_known, f1_new):
    remembers = f1_new < f1_known / 2
    found = _fault(loss_64, loss_128, o_share, tags_right, f1_known, f1_new)
    return "remembers names" if remembers else found


def _a_fixed_f1(loss_64, loss_128, o_share, tags_right, f1_known, f1_new):
    found = _fault(loss_64, loss_128, o_share, tags_right, f1_known, f1_new)
    return "remembers names" if found == "nothing found" and f1_new < 0.5 else found


@check(
    "12-diagnose",
    wrong=[
        _only_a_falling_loss,
        _absolute_difference,
        _a_high_share_is_enough,
        _accuracy_alone,
        _names_first,
        _a_fixed_f1,
    ],
)
def figures_name_the_fault(solution):
    cases = {
        "a loss that nearly halves with the padding": ((0.20, 0.11, 0.88, 0.95, 0.6, 0.1), "padding counts"),
        "a loss that rises with the padding": ((0.20, 0.23, 0.88, 0.95, 0.6, 0.5), "padding counts"),
        "a small loss that halves with the padding": ((0.008, 0.004, 0.88, 0.99, 0.9, 0.8), "padding counts"),
        "a large loss that differs by 0.6 %": ((2.00, 1.988, 0.88, 0.95, 0.6, 0.5), "nothing found"),
        "89 % of the tags, 88 % of them O, F1 0.04 and 0": ((0.4, 0.4, 0.88, 0.89, 0.04, 0.0), "says O"),
        "as many tags as O, F1 0.5 and 0.1": ((0.4, 0.4, 0.88, 0.89, 0.5, 0.1), "remembers names"),
        "F1 0.97 and 0.2": ((0.01, 0.01, 0.88, 0.97, 0.97, 0.2), "remembers names"),
        "F1 0.5 and 0.4": ((0.2, 0.2, 0.88, 0.94, 0.5, 0.4), "nothing found"),
    }  # fmt: skip
    for what, (figures, wanted) in cases.items():
        got = solution(*figures)
        if got != wanted:
            raise ExerciseFailed(f"{what}: expected {wanted!r}; got {got!r:.80}")
