"""Rows as they are checked: a text or words, with a class or BIO tags; what is wrong is said in words."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from stabviz.finetune.data.sources import Complaints, DataError, Source


@dataclass(slots=True)
class Row:
    """One checked row; `content` is a text or a list of words, `label` a class name or a list of BIO tags."""

    row: int
    content: Any
    label: Any


def checked_rows(
    source: Source, columns: tuple[str, str], complaints: Complaints, *, tagged: bool
) -> list[Row]:
    """Check each row by itself: present, of the right type, not empty, tags that fit."""
    for name in columns:
        if name not in source.columns:
            near = difflib.get_close_matches(name, source.columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                source.file, f"is missing; {hint}There are {', '.join(source.columns)}", column=name
            )
    names = class_names(source, columns[1])
    rows = []
    for i, raw in enumerate(source.rows):
        content: Any
        label: Any = None
        content, wrong = (_words if tagged else _text)(raw.get(columns[0]))
        column = columns[0] if wrong else columns[1]
        if not wrong:
            value = raw.get(column)
            label, wrong = _tags(value, names, content) if tagged else _label(value, names)
        if wrong:
            complaints.add(source.file, source.places[i], column, wrong)
        else:
            rows.append(Row(i, content, label))
    return rows


def _text(value) -> tuple[str, str | None]:
    if not isinstance(value, str):
        return "", "is null" if value is None else f"must be text; got {value!r:.60}"
    return value, _unreadable(value) or (None if value.strip() else "is an empty text")


def _unreadable(text: str) -> str | None:
    """A lone half of a surrogate pair, which JSON can write and no tokenizer can read."""
    half = re.search("[\ud800-\udfff]", text)
    return f"holds half a character, {half[0]!a}" if half else None


def _words(value) -> tuple[list[str], str | None]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        return [], "is null" if value is None else f"must be a list of words or a text; got {value!r:.60}"
    if not words:
        return [], "is an empty text"
    for i, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            return [], f"word {i} must be text that is not empty; got {word!r:.60}"
        if _unreadable(word):
            return [], f"word {i} {_unreadable(word)}"
    return words, None


def class_names(source: Source, column: str) -> list[str] | None:
    """Return the names that the data's own features give to label ids, or None."""
    feature = (source.features or {}).get(column)
    feature = getattr(feature, "feature", feature)  # the items of a list
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _label(value, names: list[str] | None) -> tuple[str, str | None]:
    if names is not None and isinstance(value, int):
        if 0 <= value < len(names):
            return names[value], None
        hint = ": rows without label can be left out with bad_rows = skip" if value == -1 else ""
        return "", f"{value} is the number of no class{hint}"
    if isinstance(value, (str, int)):
        return str(value), None if str(value).strip() else "is an empty label"
    return "", "is null" if value is None else f"must be text or a whole number; got {value!r:.60}"


def _tags(value, names: list[str] | None, words: list[str]) -> tuple[list[str], str | None]:
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list):
        return [], "is null" if value is None else f"must be a list of tags; got {value!r:.60}"
    if len(tags) != len(words):
        return [], f"has {len(tags)} tags for {len(words)} words"
    if names is not None:
        tags = [names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in tags]
    before = "O"
    for i, tag in enumerate(tags):
        if not isinstance(tag, str) or not (tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)):
            return [], f"tag {i} must be O, B-TYPE or I-TYPE; got {tag!r:.60}"
        if tag.startswith("I-") and before[2:] != tag[2:]:
            return [], f"tag {i} is {tag} after {before}: an entity must begin with B-{tag[2:]}"
        before = tag
    return tags, None


def known_rows(
    rows: list[Row],
    source: Source,
    labels: tuple[str, ...],
    column: str,
    complaints: Complaints,
    *,
    tagged: bool,
) -> list[Row]:
    """Keep the rows of validation or test whose labels occur in training."""
    kept = []
    for row in rows:
        unknown = next((name for name in (row.label if tagged else [row.label]) if name not in labels), None)
        if unknown is None:
            kept.append(row)
            continue
        near = difflib.get_close_matches(unknown, labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; training has {', '.join(labels[:12])}"
        complaints.add(source.file, source.places[row.row], column, f"unknown label {unknown!r}{hint}")
    return kept
