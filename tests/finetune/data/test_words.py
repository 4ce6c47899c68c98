"""Words of a text to be tagged: split as the words of training were."""

import json

import pytest

from stabviz.finetune.config import DATA
from stabviz.finetune.data.words import split_words, splitter_of


def support_desk(split):
    with open(DATA / "support-desk" / f"{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_messages_of_the_support_desk_are_split_as_their_words_are():
    splitter = splitter_of(row["words"] for row in support_desk("train"))
    test = support_desk("test")
    assert [split_words(row["text"], splitter) for row in test] == [row["words"] for row in test]
    assert sum(row["text"].split() == row["words"] for row in test) < 0.2 * len(test)  # as it was done


@pytest.mark.parametrize(
    ("words", "splitter"),
    [
        (["Anna", ",", "e", "-", "mail", "!"], "marks"),
        (["Anna", "'s", "e-mail", "''", "."], "clitics"),
        (["Anna's", "e-mail", "..", "."], "outer"),
        (["Anna's", "e-mail.", "Thanks!"], "spaces"),
        (["New York", "is", "big", "."], "spaces"),
    ],
)
def test_splitter_of_takes_the_finest_that_leaves_words_whole(words, splitter):
    assert splitter_of([words]) == splitter


def test_few_words_that_a_splitter_breaks_do_not_count():
    words = ["Berlin"] * 97 + ["St."] * 3
    assert splitter_of([words]) == "marks"
    assert splitter_of([words + ["St."] * 3]) == "spaces"
