"""How a text is split into words where a model was trained on words: as those words themselves suggest."""

import re
from collections.abc import Iterable

SPLITTERS = {
    "marks": re.compile(r"\w+|[^\w\s]"),
    "clitics": re.compile(r"'(?:s|re|ve|ll|d|m|t)\b|\w+(?:[^\w\s']+\w+)*|(?P<mark>[^\w\s])(?P=mark)*"),
    "outer": re.compile(r"\w+(?:[^\w\s]+\w+)*|(?P<mark>[^\w\s])(?P=mark)*"),
    "spaces": re.compile(r"\S+"),
}
"""Finest first: every punctuation mark apart; marks inside of a word left there, but 's apart; marks inside
left there; spaces alone."""
WHOLE = 0.96
"""With fewer of the training words left whole, marks are parts of words: of texts that were split at spaces
about one word in ten ends in one."""
AS_GOOD = 0.0005


def split_words(text: str, splitter: str = "spaces") -> list[str]:
    """Split a text into words.

    >>> split_words("Anna's U.N. pass, please.", "clitics")
    ['Anna', "'s", 'U.N', '.', 'pass', ',', 'please', '.']
    """
    return [found.group() for found in SPLITTERS[splitter].finditer(text)]


def splitter_of(sentences: Iterable[list[str]]) -> str:
    """Return the splitter that leaves the most words of a training set whole, the finest of equals.

    >>> splitter_of([["Anna", "lives", "in", "Berlin", "."]]), splitter_of([["in", "Berlin."]])
    ('marks', 'spaces')
    """
    words = [word for sentence in sentences for word in sentence]
    whole = {
        name: sum(split_words(word, name) == [word] for word in words) / max(1, len(words))
        for name in SPLITTERS
        if name != "spaces"
    }
    most = max(whole.values())
    if most < WHOLE:
        return "spaces"
    return next(name for name, share in whole.items() if share >= most - AS_GOOD)
