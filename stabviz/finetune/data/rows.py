"""Rows as they are checked: a text, a pair or words, with their label; what is wrong is said in words.

A `read_...` function turns one cell into what it holds, and says what is wrong with it, or None.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from stabviz.finetune.data.sources import Complaints, DataError, Source

FEW_ROWS = 5
"""A class with fewer rows of training is named: a few seldom teach one, and it may be a slip of the pen."""
TO_PREDICT = "Numbers to predict are named by --regression COLUMN, in place of --label"


@dataclass(slots=True)
class Row:
    """One checked row.

    `content` is a text, a pair of them, or a list of words; `label` a class name, a list of names or of BIO
    tags, or a number.
    """

    row: int
    content: Any
    label: Any


class Columns(NamedTuple):
    """Where the cells of a row stand."""

    content: tuple[str, ...]
    """One column, or the two of a pair."""
    label: tuple[str, ...]
    """One column, or one for each class of several."""


def checked_rows(
    source: Source, columns: Columns, complaints: Complaints, read_content: Callable, read_label: Callable
) -> list[Row]:
    """Check each row by itself: present, of the right type, not empty, tags that fit."""
    for name in columns.content + columns.label:
        if name not in source.columns:
            near = difflib.get_close_matches(name, source.columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                source.file, f"is missing; {hint}There are {', '.join(source.columns)}", column=name
            )
    names = class_names(source, columns.label[0])
    rows = []
    for i, raw in enumerate(source.rows):
        content, label, column, wrong = [], None, "", None
        for column in columns.content:
            part, wrong = read_content(raw.get(column))
            content.append(part)
            if wrong:
                break
        else:
            column, several = columns.label[0], len(columns.label) > 1
            cell = {name: raw.get(name) for name in columns.label} if several else raw.get(column)
            label, wrong = read_label(cell, names, content[0])
        if wrong:
            complaints.add(source.file, source.places[i], column, wrong)
        else:
            rows.append(Row(i, tuple(content) if len(content) > 1 else content[0], label))
    return rows


def read_text(value) -> tuple[str, str | None]:
    """Read a text."""
    if not isinstance(value, str):
        return "", "is null" if value is None else f"must be text; got {value!r:.60}"
    return value, _unreadable(value) or (None if value.strip() else "is an empty text")


def _unreadable(text: str) -> str | None:
    """A lone half of a surrogate pair, which JSON can write and no tokenizer can read."""
    half = re.search("[\ud800-\udfff]", text)
    return f"holds half a character, {half[0]!a}" if half else None


def read_words(value) -> tuple[list[str], str | None]:
    """Read a list of words, or one text that is split at spaces."""
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


def read_class(value, names: list[str] | None, _content) -> tuple[str, str | None]:
    """Read one class: its name, or its number where the data brings names along."""
    if names is not None and isinstance(value, int):
        if 0 <= value < len(names):
            return names[value], None
        hint = ": rows without label can be left out with bad_rows = skip" if value == -1 else ""
        return "", f"{value} is the number of no class{hint}"
    if isinstance(value, (str, int)):
        return str(value), None if str(value).strip() else "is an empty label"
    if isinstance(value, float):
        return "", f"must be text or a whole number; got {value!r:.60}. {TO_PREDICT}"
    return "", "is null" if value is None else f"must be text or a whole number; got {value!r:.60}"


def read_classes(value, names: list[str] | None, _content) -> tuple[list[str], str | None]:
    """Read any number of classes: a list, one text with commas or semicolons between, or {class: 0 or 1}."""
    if isinstance(value, dict):
        for name, flag in value.items():
            if str(flag).strip().lower() not in ("0", "1", "true", "false"):
                return [], f"{name!r} must be 0 or 1; got {flag!r:.60}"
        return [name for name, flag in value.items() if str(flag).strip().lower() in ("1", "true")], None
    if isinstance(value, str):
        value = [part.strip() for part in re.split("[,;]", value) if part.strip()]
    if not isinstance(value, list):
        return [], "is null" if value is None else f"must be a list of classes; got {value!r:.60}"
    found = [read_class(part, names, None) for part in value]
    return sorted({name for name, _ in found}), next((wrong for _, wrong in found if wrong), None)


def read_number(value, _names, _content) -> tuple[float, str | None]:
    """Read a finite number, or a text that is one."""
    wrong = "is null" if value is None else f"must be a finite number; got {value!r:.60}"
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan, wrong
    return number, None if math.isfinite(number) else wrong


def read_tags(value, names: list[str] | None, words: list[str]) -> tuple[list[str], str | None]:
    """Read BIO tags, one for each word."""
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list):
        return [], "is null" if value is None else f"must be a list of tags; got {value!r:.60}"
    if len(tags) != len(words):
        return [], f"has {len(tags)} tags for {len(words)} words"
    if names is not None:
        tags = [names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in tags]
    for i, tag in enumerate(tags):
        if not isinstance(tag, str) or not (tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)):
            return [], f"tag {i} must be O, B-TYPE or I-TYPE; got {tag!r:.60}"
    return tags, None


def repaired(rows: list[Row], source: Source, warnings: list[str]) -> list[Row]:
    """Let each entity begin with B-: an I- after another type, or after O, becomes one, and is counted.

    Source: conlleval.pl of the CoNLL-2000 shared task, which reads such a tag as the start of a chunk
    """
    found, first = 0, ""
    for row in rows:
        tags = row.label
        row.label = [*tags]  # a list of its own: the source keeps what stands in the file
        for i, (tag, before) in enumerate(zip(tags, ["O", *tags], strict=False)):
            if tag.startswith("I-") and before[2:] != tag[2:]:
                row.label[i] = f"B-{tag[2:]}"
                first = first or f"{source.places[row.row]}, tag {i}, {tag} after {before}"
                found += 1
    if found:
        warnings.append(
            f"{source.file}: {found} I- tags begin an entity, and are read as B-, as conlleval does; "
            f"the first: {first}"
        )
    return rows


def decimals(names: list[str]) -> list[str]:
    """Return those of some class names that are numbers with decimals, if all of them are numbers."""
    if not all(re.fullmatch(r"\s*-?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?\s*", name) for name in names):
        return []
    return [name for name in names if not re.fullmatch(r"\s*-?[0-9]+\s*", name)]


def doubtful_classes(counts: Counter[str]) -> list[str]:
    """Say which classes of training may be misspelt, or are too rare to be learnt; `counts`: rows by name."""
    few = {name: n for name, n in counts.items() if n < FEW_ROWS}
    known = [name for name in counts if name not in few]
    said, rare = [], []
    for name, n in few.items():
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8) if re.search("[^0-9.-]", name) else []
        if near:
            said.append(f"class {name!r} has {n} row{'s' * (n > 1)} of training; did you mean {near[0]!r}?")
        else:
            rare.append(f"{name!r} {n}")
    if rare:
        more = f" and {len(rare) - 12} more" if len(rare) > 12 else ""
        said.append(f"classes with fewer than {FEW_ROWS} rows of training: {', '.join(rare[:12])}{more}")
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(re.sub(r"[\W_]+", "", name).casefold() or name, []).append(name)
    for names in alike.values():
        if len(names) > 1 and re.search("[^0-9.-]", names[0]):
            said.append(f"classes {' and '.join(map(repr, names))} differ in case, spaces or signs alone")
    return said


def known_rows(
    rows: list[Row],
    source: Source,
    labels: tuple[str, ...],
    column: str,
    complaints: Complaints,
    names_of: Callable[[Any], Iterable[str]],
) -> list[Row]:
    """Keep the rows of validation or test whose names, names_of(label), all occur in training."""
    kept = []
    for row in rows:
        unknown = next((name for name in names_of(row.label) if name not in labels), None)
        if unknown is None:
            kept.append(row)
            continue
        near = difflib.get_close_matches(unknown, labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; training has {', '.join(labels[:12])}"
        complaints.add(source.file, source.places[row.row], column, f"unknown label {unknown!r}{hint}")
    return kept
