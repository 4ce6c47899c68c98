"""Names in tagged messages: spans at the ends of a message, neighbours, and names of other lengths put in."""

import pytest

from stabviz.finetune.data.names import names_of, renamed, spans_of
from stabviz.scores import entity_scores


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-PER"], [(0, 1, "PER")]),
        (["B-PER", "B-PER", "I-PER"], [(0, 1, "PER"), (1, 3, "PER")]),
        (["O", "B-LOC", "I-LOC", "O", "B-ORG"], [(1, 3, "LOC"), (4, 5, "ORG")]),
    ],
)
def test_spans(tags, spans):
    assert spans_of(tags) == spans


def test_renamed_keeps_every_other_word_and_leaves_its_argument():
    rows = [
        {"words": ["Ann", "Lee", "and", "Bo", "."], "tags": ["B-PER", "I-PER", "O", "B-PER", "O"]},
        {"words": ["Hello"], "tags": ["O"]},
    ]
    before = [{name: list(values) for name, values in row.items()} for row in rows]
    new = renamed(rows, lambda kind, words: ["Y"] * (3 if words == ["Bo"] else 1))
    assert new[0]["words"] == ["Y", "and", "Y", "Y", "Y", "."]
    assert new[0]["tags"] == ["B-PER", "O", "B-PER", "I-PER", "I-PER", "O"]
    assert new[1] == rows[1]
    assert rows == before
    assert names_of(new) == {"PER": [["Y"], ["Y", "Y", "Y"]]}
    assert renamed(rows, lambda kind, words: words) == rows
    assert entity_scores([row["tags"] for row in rows], [row["tags"] for row in rows])["f1"] == 1.0
