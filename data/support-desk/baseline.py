"""Print how far a bag of words gets on the support-desk corpus: what is left needs word order, or luck.

python data/support-desk/baseline.py
"""

import json
from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

HERE = Path(__file__).resolve().parent


def read(split: str) -> list[dict]:
    """Return the rows of a split."""
    return [json.loads(line) for line in (HERE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def bag_of_words(label: str, split: str, ngram: int = 1) -> tuple[float, float]:
    """Return accuracy and macro F1 of a logistic regression on word counts."""
    train, test = (read(name) for name in ("train", split))
    counts = CountVectorizer(ngram_range=(1, ngram), min_df=2)
    features = counts.fit_transform(row["text"] for row in train)
    model = LogisticRegression(max_iter=2000, random_state=0).fit(features, [row[label] for row in train])
    guess = model.predict(counts.transform(row["text"] for row in test))
    truth = [row[label] for row in test]
    return sum(a == b for a, b in zip(guess, truth, strict=True)) / len(truth), f1_score(
        truth, guess, average="macro"
    )


def names_seen() -> float:
    """Return the share of test entities whose words were all part of some entity in training."""

    def mentions(split):
        found = []
        for row in read(split):
            for word, tag in zip(row["words"], row["tags"], strict=True):
                if tag.startswith("B-"):
                    found.append([word.lower()])
                elif tag != "O":
                    found[-1].append(word.lower())
        return found

    known = {word for words in mentions("train") for word in words}
    test = mentions("test")
    return sum(set(words) <= known for words in test) / len(test)


if __name__ == "__main__":
    for label in ("intent", "sentiment"):
        for split in ("validation", "test"):
            for ngram in (1, 2):
                accuracy, macro_f1 = bag_of_words(label, split, ngram)
                print(
                    f"{label:9s} {split:10s} up to {ngram}-grams: accuracy {accuracy:.3f}, macro F1 "
                    f"{macro_f1:.3f}"
                )
    print(f"entities of the test split whose words all occurred in training entities: {names_seen():.3f}")
