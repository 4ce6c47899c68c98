"""The support-desk corpus: rewritten byte for byte, labels as described, nothing of the test split in
training."""

import collections
import importlib.util
import json
import re
import tomllib

import pytest

from stabviz.finetune.config import DATA

FOLDER = DATA / "support-desk"
SPLITS = {"train": 3600, "validation": 600, "test": 600}
PAIRS = [("train", "validation"), ("train", "test"), ("validation", "test")]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("support_desk_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(generate):
    return generate.corpus()


@pytest.fixture(scope="module")
def rows():
    return {
        split: [
            json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in SPLITS
    }


def mentions(rows):
    """Yield each entity as (type, words in lower case)."""
    for row in rows:
        entity = []
        for word, tag in zip([*row["words"], ""], [*row["tags"], "O"], strict=True):
            if entity and not tag.startswith("I-"):
                yield entity[0], tuple(entity[1:])
                entity = []
            if tag != "O":
                entity = [*(entity or [tag[2:]]), word.lower()]


def test_generator_rewrites_the_files_byte_for_byte(generate, tmp_path):
    generate.write(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


def test_generator_another_seed_is_another_corpus(generate, rows, tmp_path):
    generate.write(tmp_path, seed=1)
    other = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(other) == 600
    texts = {row["text"] for row in rows["test"]}
    assert sum(json.loads(line)["text"] in texts for line in other) < 6


def test_splits_have_their_size_and_every_label(rows):
    assert {split: len(part) for split, part in rows.items()} == SPLITS
    for part in rows.values():
        assert len({row["intent"] for row in part}) == 10
        assert {row["sentiment"] for row in part} == {"negative", "neutral", "positive"}
        assert {tag[2:] for row in part for tag in row["tags"]} == {"", "PER", "ORG", "LOC", "PRODUCT"}
        counts = collections.Counter(row["intent"] for row in part)
        assert max(counts.values()) - min(counts.values()) <= 0.05 * len(part) / 10


def test_texts_are_short_and_occur_once(rows):
    texts = [row["text"] for part in rows.values() for row in part]
    assert len({text.lower() for text in texts}) == len(texts)
    assert {10 <= len(text.split()) <= 40 for text in texts} == {True}


def test_words_are_the_text_and_tags_are_sound(rows):
    for row in (row for part in rows.values() for row in part):
        assert "".join(row["words"]) == re.sub(r"\s", "", row["text"])
        assert len(row["words"]) == len(row["tags"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_sentiment_does_not_follow_intent(rows):
    share = collections.Counter(row["sentiment"] for row in rows["train"])
    for intent in {row["intent"] for row in rows["train"]}:
        part = [row["sentiment"] for row in rows["train"] if row["intent"] == intent]
        for sentiment, count in share.items():
            # 4 standard deviations of a share of 360 draws
            assert part.count(sentiment) / len(part) == pytest.approx(count / 3600, abs=0.105)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_template_serves_two_splits(corpus, one, other):
    used = {split: {template for _, took in corpus[split] for _, template in took} for split in (one, other)}
    assert len(used[one]) > 100
    assert not {plain(template) for template in used[one]} & {plain(template) for template in used[other]}


def plain(template):
    return " ".join(re.findall(r"\w+|\{\w+\}", template.lower()))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_entity_name_and_no_word_of_one_serves_two_splits(rows, one, other):
    generic = set(
        "group ltd bank clinic foods media library college council hospital and sons north street park road "
        "harbour pro mini plus cloud desk home & . of".split()
    )
    found = {}
    for split in (one, other):
        names = {words for _, words in mentions(rows[split])}
        words = {re.sub(r"-\d+$", "", word) for name in names for word in name}
        found[split] = names, {word for word in words if len(word) > 1 and not word.isdigit()} - generic
    assert len(found[one][0]) > 300
    assert not found[one][0] & found[other][0]
    assert not found[one][1] & found[other][1]


def test_clauses_of_the_test_split_are_not_found_in_training_text(generate, rows):
    """Search the data itself: the requests and problems of the test templates, in every wording, names left
    open."""
    words = tomllib.loads((FOLDER / "templates.toml").read_text(encoding="utf-8"))["intent"]
    training = " | ".join(masked(row) for row in rows["train"])
    test = " | ".join(masked(row) for row in rows["test"])
    templates, _ = generate.pools("test")
    found = {"training": 0, "test": 0}
    for kind, items in templates.items():
        part, _, intent = kind.partition(".")
        for template in items if part in ("acts", "problems") else ():
            pattern = wording(template, words[intent]["words"])
            found["training"] += len(re.findall(pattern, training))
            found["test"] += len(re.findall(pattern, test))
    assert found["training"] == 0
    assert found["test"] > 600  # the search finds what is there


def masked(row):
    """The message in lower case with each entity as its type."""
    pairs = zip(row["words"], row["tags"], strict=True)
    return " ".join(
        word.lower() if tag == "O" else tag[2:] for word, tag in pairs if not tag.startswith("I-")
    )


def wording(template, words):
    """A pattern of all that a template may become, in the form of `masked`."""

    def slot(found):
        name = found[1]
        if name in ("PER", "ORG", "LOC", "PRODUCT"):
            return name
        if name in words:
            return "(?:" + "|".join(wording(word, words) for word in words[name]) + ")"
        return r"[\w.]+(?: \w+){0,4}?"

    parts = re.split(r"(\{\w+\})", template)
    pattern = "".join(part if part.startswith("{") else part.lower() for part in parts)
    return re.sub(r"\{(\w+)\}", slot, pattern.replace("(", "(?:"))


def test_a_bag_of_words_is_far_from_chance_and_far_from_right(rows):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = CountVectorizer(min_df=2)
    features = counts.fit_transform([row["text"] for row in rows["train"]])
    model = LogisticRegression(max_iter=300).fit(features, [row["intent"] for row in rows["train"]])
    guess = model.predict(counts.transform([row["text"] for row in rows["test"]]))
    right = sum(a == row["intent"] for a, row in zip(guess, rows["test"], strict=True)) / 600
    assert 0.65 < right < 0.85


def test_the_card_states_what_the_files_hold(rows):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split, part in rows.items():
        assert re.search(rf"\| {split} \| {len(part):,} \|", card)
    for intent in {row["intent"] for row in rows["train"]}:
        assert f"`{intent}`" in card
    assert "MIT" in card
