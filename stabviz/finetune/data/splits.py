"""`read_splits`: from a name, a file, a folder or a hub id to three checked splits with label ids."""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stabviz.finetune.config import DATA, DataConfig, KindName
from stabviz.finetune.data.docstrings import docstring_modules, split_docstrings
from stabviz.finetune.data.rows import (
    TO_PREDICT,
    Columns,
    Row,
    checked_rows,
    class_names,
    decimals,
    doubtful_classes,
    known_rows,
    repaired,
)
from stabviz.finetune.data.sources import (
    SUFFIXES,
    Complaints,
    DataError,
    Source,
    read_folder,
    read_hub,
    read_source,
)
from stabviz.finetune.tasks import KINDS
from stabviz.seeds import integer

SPLITS = ("train", "validation", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three checked splits and the labels that their ids stand for."""

    kind: KindName
    """tags: columns row, words and tags. Else row, text, of pairs text_pair, and label: the class, a 0 or 1
    for each class, or a number."""
    labels: tuple[str, ...]
    """Class names or BIO tags; id = position. Sorted, "O" first; class names that the data brings keep its
    order. Of a regression the name of its column."""
    train: Any
    """A `datasets.Dataset`; `row` is the position in the split as it was read, bad rows counted."""
    validation: Any
    test: Any
    warnings: list[str] = field(default_factory=list)
    """What is no error and should be looked at: classes that may be misspelt, tags that were repaired."""
    skipped: list[dict]
    """Rows left out because bad_rows is "skip": file, row, column, problem."""
    fingerprint: str
    """Hash of labels and rows: the same data read by the same settings."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training numbers of a regression, which learns (number - mean) /
    deviation."""


def read_splits(data: DataConfig, seed: int = 0) -> Splits:
    """Read, check and divide the data of a run; the same settings give the same rows.

    Raises: DataError that names file, row and column, unless data.bad_rows is "skip"
    """
    complaints = Complaints(skip=data.bad_rows == "skip")
    with complaints:
        checked, labels, file = _checked(data, seed, complaints)
    checked = _with_made_splits(checked, file, data, seed)
    train = _chosen(checked["train"], data, seed)
    checked["train"] = _with_noise(train, labels, data, seed) if data.label_noise else train
    return _as_splits(checked, labels, data, complaints)


def read_rows(
    data: DataConfig, labels: tuple[str, ...], *, split: str | None = None, seed: int = 0
) -> Splits:
    """Read rows to score a trained model on, as the test split of what is returned: its others are empty.

    Of one file all rows; of a folder or a hub id those of `split`, or of its test split.

    Raises: DataError that names file, row and column, also for a label that is none of `labels`
    """
    kind, alone = KINDS[data.kind], Path(data.source).is_file()
    complaints = Complaints(skip=data.bad_rows == "skip")
    with complaints:
        sources, columns = _open(data, seed, complaints)
        if alone and split:
            raise DataError(
                data.source, f"is one file without splits, scored as a whole; leave out {split!r}"
            )
        name = "train" if alone else split or "test"
        if name not in sources:
            raise DataError(data.source, f"has no {name} split; it has {', '.join(sources)}")
        rows = checked_rows(sources[name], columns, complaints, kind.read_content, kind.read_label)
        rows = repaired(rows, sources[name], complaints.warnings) if data.tags else rows
        rows = known_rows(rows, sources[name], labels, columns.label[0], complaints, kind.names)
        if not rows:
            raise DataError(sources[name].file, "no row is left to score")
    return _as_splits({"train": [], "validation": [], "test": rows}, labels, data, complaints)


def _checked(
    data: DataConfig, seed: int, complaints: Complaints
) -> tuple[dict[str, list[Row]], tuple[str, ...], str]:
    """Return the checked rows of each split that is there, the labels, and the file of training."""
    kind = KINDS[data.kind]
    sources, columns = _open(data, seed, complaints)
    checked = {
        split: checked_rows(source, columns, complaints, kind.read_content, kind.read_label)
        for split, source in sources.items()
    }
    if data.tags:
        checked = {s: repaired(rows, sources[s], complaints.warnings) for s, rows in checked.items()}
    if not checked["train"]:
        raise DataError(sources["train"].file, "no training row is left")
    given = [row.label for row in checked["train"]]
    if data.kind == "classes" and (not_whole := decimals(given)):
        raise DataError(
            sources["train"].file,
            f"holds numbers with decimals, {', '.join(not_whole[:3])}: they are no classes. {TO_PREDICT}",
            column=columns.label[0],
        )
    names = class_names(sources["train"], columns.label[0])
    try:
        labels = kind.labels(given, names, columns.label)
    except ValueError as error:
        raise DataError(sources["train"].file, str(error), column=columns.label[0]) from error
    for split in SPLITS[1:]:
        if split in checked:
            checked[split] = known_rows(
                checked[split], sources[split], labels, columns.label[0], complaints, kind.names
            )
    if data.kind in ("classes", "multi_label"):
        complaints.warnings += doubtful_classes(
            Counter(name for label in given for name in kind.names(label))
        )
    return checked, labels, sources["train"].file


def _open(data: DataConfig, seed: int, complaints: Complaints) -> tuple[dict[str, Source], Columns]:
    """Find the sources of the splits, and the names of the columns."""
    one_label = data.tags or data.regression or data.label
    path, content = Path(data.source), (data.text, *([data.text_pair] if data.text_pair else []))
    columns = Columns(content, data.multi_label or (one_label or "label",))
    if data.source == "docstrings":
        return _docstrings(data, seed), columns
    if data.source == "support-desk":
        path = DATA / "support-desk"
        words = ("words",) if data.tags and data.text == "text" else content
        columns = Columns(words, data.multi_label or (one_label or "intent",))
        if not path.is_dir():
            raise DataError(
                str(path),
                "the corpus is in the repository, not in the installed package; "
                "run from a clone, or give data of your own",
            )
    wanted, named = columns.content + columns.label, data.splits.named
    if path.suffix in SUFFIXES and not path.exists():
        raise DataError(data.source, "no such file")
    if path.is_file():
        if set(named.values()) - {"none"}:
            raise DataError(data.source, "is one file, whose rows are all training; name no splits")
        return {"train": read_source(path, wanted, complaints)}, columns
    if path.is_dir() and not any(
        (path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")
    ):
        return read_folder(path, wanted, complaints, named), columns
    return read_hub(data.source, data.splits.data_config, wanted, named, data.splits.data_revision), columns


def _docstrings(data: DataConfig, seed: int) -> dict[str, Source]:
    if data.kind != "classes" or data.text_pair:
        what = "pairs" if data.text_pair else data.kind
        raise DataError("docstrings", f"docstrings have classes, no {what}")
    packages = docstring_modules()
    if len(packages) < 2:
        raise DataError("docstrings", "this Python has no standard library in source form to read")
    rows = split_docstrings(
        packages, validation_share=data.splits.validation_share, test_share=data.splits.test_share, seed=seed
    )
    return {
        split: Source(
            f"docstrings[{split}]", ("text", "label", "file"), found, [row["file"] for row in found]
        )
        for split, found in rows.items()
        if found
    }


def _with_made_splits(
    rows: dict[str, list[Row]], file: str, data: DataConfig, seed: int
) -> dict[str, list[Row]]:
    """Set rows of training aside for each split that is missing: shares of the rows as they were read."""
    rest, total, made = rows["train"], len(rows["train"]), dict(rows)
    shares = (("test", data.splits.test_share), ("validation", data.splits.validation_share))
    for split, share in shares:
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
        chosen = _stratified([KINDS[data.kind].stratum(row.label) for row in rest], order, wanted)
        made[split] = [row for i, row in enumerate(rest) if i in chosen]
        rest = [row for i, row in enumerate(rest) if i not in chosen]
    made["train"] = rest
    return made


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
    rows: dict[str, list[Row]], labels: tuple[str, ...], data: DataConfig, complaints: Complaints
) -> Splits:
    import datasets

    if complaints.skipped:
        first = complaints.skipped[0]
        log.warning("read_splits: %d bad rows left out, the first: %s", len(complaints.skipped), first)
    for warning in complaints.warnings:
        log.warning("warning: %s", warning)
    kind, tagged = KINDS[data.kind], bool(data.tags)
    text, number = datasets.Value("string"), datasets.Value("int64")
    contents = ("words",) if tagged else ("text", "text_pair") if data.text_pair else ("text",)
    target = "tags" if tagged else "label"
    cell = datasets.Value(kind.number)
    # Named, not inferred: the columns of an empty split would have no type.
    features = datasets.Features(
        {
            "row": number,
            **dict.fromkeys(contents, datasets.List(text) if tagged else text),
            target: datasets.List(cell) if kind.several else cell,
        }
    )
    ids = {name: i for i, name in enumerate(labels)}
    digest = hashlib.sha256(json.dumps(labels).encode())
    made = {}
    for split in SPLITS:
        found = rows[split]
        columns = {"row": [row.row for row in found]}
        for i, content in enumerate(contents):
            columns[content] = [row.content if len(contents) == 1 else row.content[i] for row in found]
        columns[target] = [kind.encode(row.label, ids) for row in found]
        digest.update(json.dumps([split, columns]).encode())
        made[split] = datasets.Dataset.from_dict(columns, features=features)
    return Splits(
        kind=data.kind,
        labels=labels,
        skipped=complaints.skipped,
        warnings=complaints.warnings,
        fingerprint=digest.hexdigest(),
        scale=kind.scale([row.label for row in rows["train"]]) if rows["train"] else (0.0, 1.0),
        **made,
    )
