"""`read_splits`: from a name, a file, a folder or a hub id to three checked splits with label ids."""

import dataclasses
import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stabviz.finetune.config import DATA, DataConfig
from stabviz.finetune.data.docstrings import docstring_modules, split_docstrings
from stabviz.finetune.data.rows import Row, checked_rows, class_names, known_rows
from stabviz.finetune.data.sources import (
    SUFFIXES,
    Complaints,
    DataError,
    Source,
    read_folder,
    read_hub,
    read_source,
)
from stabviz.seeds import integer

SPLITS = ("train", "validation", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three checked splits and the labels that their ids stand for."""

    kind: Literal["classes", "tags"]
    """classes: columns row, text and label. tags: columns row, words and tags."""
    labels: tuple[str, ...]
    """Class names or BIO tags; id = position. Sorted, "O" first; class names that the data brings keep its
    order."""
    train: Any
    """A `datasets.Dataset`; `row` is the position in the split as it was read, bad rows counted."""
    validation: Any
    test: Any
    skipped: list[dict]
    """Rows left out because bad_rows is "skip": file, row, column, problem."""
    fingerprint: str
    """Hash of labels and rows: the same data read by the same settings."""


def read_splits(data: DataConfig, seed: int = 0) -> Splits:
    """Read, check and divide the data of a run; the same settings give the same rows.

    Raises: DataError that names file, row and column, unless data.bad_rows is "skip"
    """
    complaints = Complaints(skip=data.bad_rows == "skip")
    sources, columns = _open(data, seed, complaints)
    checked = {
        split: checked_rows(source, columns, complaints, tagged=bool(data.tags))
        for split, source in sources.items()
    }
    if not checked["train"]:
        raise DataError(sources["train"].file, "no training row is left")
    labels = _labels(checked["train"], sources["train"], columns, data)
    for split in SPLITS[1:]:
        if split in checked:
            checked[split] = known_rows(
                checked[split], sources[split], labels, columns[1], complaints, tagged=bool(data.tags)
            )
    checked = _with_made_splits(checked, sources["train"].file, data, seed)
    train = _chosen(checked["train"], data, seed)
    checked["train"] = _with_noise(train, labels, data, seed) if data.label_noise else train
    if complaints.skipped:
        log.warning(
            "read_splits: %d bad rows left out, the first: %s", len(complaints.skipped), complaints.skipped[0]
        )
    return _as_splits(checked, labels, data, complaints.skipped)


def _open(data: DataConfig, seed: int, complaints: Complaints) -> tuple[dict[str, Source], tuple[str, str]]:
    """Find the sources of the splits, and the names of the content column and of the label or tag column."""
    path, columns = Path(data.source), (data.text, data.tags or data.label or "label")
    if data.source == "docstrings":
        return _docstrings(data, seed), columns
    if data.source == "support-desk":
        path = DATA / "support-desk"
        columns = (
            "words" if data.tags and data.text == "text" else data.text,
            data.tags or data.label or "intent",
        )
        if not path.is_dir():
            raise DataError(
                str(path),
                "the corpus is in the repository, not in the installed package; "
                "run from a clone, or give data of your own",
            )
    if path.suffix in SUFFIXES and not path.exists():
        raise DataError(data.source, "no such file")
    if path.is_file():
        return {"train": read_source(path, columns, complaints)}, columns
    if path.is_dir() and not any(
        (path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")
    ):
        return read_folder(path, columns, complaints), columns
    return read_hub(data.source, data.data_config, columns), columns


def _docstrings(data: DataConfig, seed: int) -> dict[str, Source]:
    if data.tags:
        raise DataError("docstrings", "docstrings have classes, no tags", column=data.tags)
    packages = docstring_modules()
    if len(packages) < 2:
        raise DataError("docstrings", "this Python has no standard library in source form to read")
    rows = split_docstrings(
        packages, validation_share=data.validation_share, test_share=data.test_share, seed=seed
    )
    return {
        split: Source(
            f"docstrings[{split}]", ("text", "label", "file"), found, [row["file"] for row in found]
        )
        for split, found in rows.items()
        if found
    }


def _labels(rows: list[Row], source: Source, columns: tuple[str, str], data: DataConfig) -> tuple[str, ...]:
    """Return the labels that training knows: B- and I- of every type, or at least two classes."""
    if data.tags:
        types = sorted({tag[2:] for row in rows for tag in row.label if tag != "O"})
        if not types:
            raise DataError(source.file, "has no entity in training, only O", column=columns[1])
        return ("O", *(f"B-{name}" for name in types), *(f"I-{name}" for name in types))
    found = {row.label for row in rows}
    if len(found) < 2:
        raise DataError(source.file, f"must have at least 2 classes; got {sorted(found)}", column=columns[1])
    names = class_names(source, columns[1])
    if names is not None:
        return tuple(names)
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def _with_made_splits(
    rows: dict[str, list[Row]], file: str, data: DataConfig, seed: int
) -> dict[str, list[Row]]:
    """Set rows of training aside for each split that is missing: shares of the rows as they were read."""
    rest, total, made = rows["train"], len(rows["train"]), dict(rows)
    for split, share in (("test", data.test_share), ("validation", data.validation_share)):
        if rows.get(split):
            continue
        wanted = round(share * total)
        if wanted < 1:
            raise DataError(
                file,
                f"there is no {split} split and {split}_share = {share} of {total} rows "
                "makes none; raise it or add a file",
            )
        order = np.random.default_rng(integer(seed, "split", split)).permutation(len(rest))
        chosen = _stratified([_stratum(row) for row in rest], order, wanted)
        made[split] = [row for i, row in enumerate(rest) if i in chosen]
        rest = [row for i, row in enumerate(rest) if i not in chosen]
    made["train"] = rest
    return made


def _stratum(row: Row) -> str:
    if isinstance(row.label, str):
        return row.label
    return " ".join(sorted({tag[2:] for tag in row.label if tag != "O"}))


def _stratified(strata: list[str], order: np.ndarray, wanted: int) -> set[int]:
    """Choose `wanted` rows, every class in proportion; each class keeps its first row in `order`."""
    seen: set[str] = set()
    candidates = []
    for i in order:
        if strata[i] in seen:
            candidates.append(int(i))
        seen.add(strata[i])
    candidates.sort(key=lambda i: strata[i])  # stable: the drawn order holds within a class
    if not candidates:
        return set()
    steps = np.linspace(0, len(candidates), min(wanted, len(candidates)), endpoint=False)
    return {candidates[int(step)] for step in steps}


def _chosen(rows: list[Row], data: DataConfig, seed: int) -> list[Row]:
    """Keep max_train_rows rows in order; a smaller number keeps a part of what a larger one keeps."""
    if data.max_train_rows is None or data.max_train_rows >= len(rows):
        return rows
    order = np.random.default_rng(integer(seed, "chosen rows")).permutation(len(rows))
    return [rows[i] for i in sorted(order[: data.max_train_rows])]


def _with_noise(rows: list[Row], labels: tuple[str, ...], data: DataConfig, seed: int) -> list[Row]:
    """Give round(label_noise * n) of n labels or entities another class or type, drawn evenly."""
    rng = np.random.default_rng(integer(seed, "label noise"))
    rows = [dataclasses.replace(row, label=list(row.label) if data.tags else row.label) for row in rows]
    names = sorted({label[2:] for label in labels if label != "O"}) if data.tags else list(labels)
    if len(names) < 2:
        raise DataError(data.source, "label_noise needs at least 2 entity types", column=data.tags)
    if data.tags:
        units = [
            (i, j) for i, row in enumerate(rows) for j, tag in enumerate(row.label) if tag.startswith("B-")
        ]
    else:
        units = [(i, 0) for i in range(len(rows))]
    for unit in sorted(rng.permutation(len(units))[: round(data.label_noise * len(units))]):
        i, j = units[unit]
        label = rows[i].label
        old = label[j][2:] if data.tags else label
        new = names[(names.index(old) + 1 + int(rng.integers(len(names) - 1))) % len(names)]
        if not data.tags:
            rows[i].label = new
            continue
        label[j] = f"B-{new}"
        while j + 1 < len(label) and label[j + 1].startswith("I-"):
            j += 1
            label[j] = f"I-{new}"
    return rows


def _as_splits(
    rows: dict[str, list[Row]], labels: tuple[str, ...], data: DataConfig, skipped: list
) -> Splits:
    import datasets

    ids = {name: i for i, name in enumerate(labels)}
    content, target = ("words", "tags") if data.tags else ("text", "label")
    text, number = datasets.Value("string"), datasets.Value("int64")
    cells = (datasets.List(text), datasets.List(number)) if data.tags else (text, number)
    # Named, not inferred: the columns of an empty split would have no type.
    features = datasets.Features({"row": number, content: cells[0], target: cells[1]})
    digest = hashlib.sha256(json.dumps(labels).encode())
    made = {}
    for split in SPLITS:
        columns = {
            "row": [row.row for row in rows[split]],
            content: [row.content for row in rows[split]],
            target: [[ids[tag] for tag in row.label] if data.tags else ids[row.label] for row in rows[split]],
        }
        digest.update(json.dumps([split, columns]).encode())
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    return Splits(
        kind="tags" if data.tags else "classes",
        labels=labels,
        skipped=skipped,
        fingerprint=digest.hexdigest(),
        **made,
    )
