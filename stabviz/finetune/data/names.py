"""The names in tagged messages: find them, and put others in their place."""

from collections.abc import Callable, Sequence


def spans_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return first word, the word after the last, and type of each entity of one message.

    >>> spans_of(["O", "B-PER", "I-PER", "B-ORG"])
    [(1, 3, 'PER'), (3, 4, 'ORG')]
    """
    begins = [i for i, tag in enumerate(tags) if tag.startswith("B-")]

    def end(first: int) -> int:
        return next((j for j in range(first + 1, len(tags)) if not tags[j].startswith("I-")), len(tags))

    return [(i, end(i), tags[i][2:]) for i in begins]


def names_of(rows: Sequence[dict]) -> dict[str, list[list[str]]]:
    """Collect the names in messages, each a list of words, by type; one that occurs often stands there often.

    Lesson: 12-entities

    >>> names_of([{"words": ["Ask", "Ann", "Lee"], "tags": ["O", "B-PER", "I-PER"]}])
    {'PER': [['Ann', 'Lee']]}
    """
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        for first, end, kind in spans_of(row["tags"]):
            found.setdefault(kind, []).append(list(row["words"][first:end]))
    return found


def renamed(rows: Sequence[dict], name: Callable[[str, list[str]], list[str]]) -> list[dict]:
    """Return the same messages with name(type, words) where a name stood; all other words stay.

    Lesson: 12-entities

    >>> rows = [{"words": ["Ask", "Ann", "."], "tags": ["O", "B-PER", "O"]}]
    >>> renamed(rows, lambda kind, words: ["Mr", "X"])
    [{'words': ['Ask', 'Mr', 'X', '.'], 'tags': ['O', 'B-PER', 'I-PER', 'O']}]
    """
    changed = []
    for row in rows:
        words: list[str] = []
        tags: list[str] = []
        at = 0
        for first, end, kind in spans_of(row["tags"]):
            new = name(kind, list(row["words"][first:end]))
            words += [*row["words"][at:first], *new]
            tags += [*row["tags"][at:first], f"B-{kind}", *[f"I-{kind}"] * (len(new) - 1)]
            at = end
        changed.append({"words": [*words, *row["words"][at:]], "tags": [*tags, *row["tags"][at:]]})
    return changed
