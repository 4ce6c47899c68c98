"""Rows from a file, a folder or a hub, with the place of each, so that a bad one can be named."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


MOST_BAD_ROWS = 20
"""Bad rows that an error names one by one."""


class DataError(ValueError):
    """Bad data, named: file, row and column in one line."""

    def __init__(self, file: str, problem: str, *, row: str | None = None, column: str | None = None):
        place = [file, *([row] if row else []), *([f"column {column!r}"] if column else [])]
        super().__init__(" ".join(f"read_splits: {', '.join(place)}: {problem}".split()))
        self.file, self.row, self.column, self.problem = file, row, column, problem


class BadRows(DataError):
    """Several bad rows, each named on a line of its own; of many the first."""

    def __init__(self, errors: list[DataError]):
        lines = [str(error).removeprefix("read_splits: ") for error in errors[:MOST_BAD_ROWS]]
        first = f"; the first {len(lines)}" if len(lines) < len(errors) else ""
        head = f"read_splits: {len(errors)} rows are bad (--bad-rows skip leaves them out){first}:"
        ValueError.__init__(self, "\n  ".join([head, *lines]))
        self.file, self.row, self.column = errors[0].file, errors[0].row, errors[0].column
        self.problem = errors[0].problem


@dataclass
class Complaints:
    """What becomes of bad rows: all are collected; as a context it raises them at its end, unless `skip`.

    Raises: DataError for one bad row, BadRows for several
    """

    skip: bool
    skipped: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What is no error and should be looked at."""

    def add(self, file: str, row: str, column: str | None, problem: str) -> None:
        """Note a bad row."""
        self.skipped.append({"file": file, "row": row, "column": column, "problem": problem})

    def __enter__(self) -> "Complaints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # too few rows or classes may come of bad rows: those are what is to be mended
        if self.skipped and not self.skip and (error is None or isinstance(error, DataError)):
            bad = [
                DataError(row["file"], row["problem"], row=row["row"], column=row["column"])
                for row in self.skipped
            ]
            raise (bad[0] if len(bad) == 1 else BadRows(bad)) from error


@dataclass
class Source:
    """The rows of one split. `places[i]` says where row i stands: "line 7" of a file, "row 6" of a table."""

    file: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    places: list[str]
    features: Any = None
    """`datasets.Features`, where the data brings class names along."""


def read_source(path: Path, columns: tuple[str, ...], complaints: Complaints) -> Source:
    """Read one local file by its suffix; of a table only the named columns."""
    if path.suffix not in SUFFIXES:
        raise DataError(
            str(path),
            f"cannot read {path.suffix or 'a file without suffix'!r}; use one of {', '.join(SUFFIXES)}",
        )
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    reader = _csv_rows if path.suffix in (".csv", ".tsv") else _json_rows
    found = list(reader(path, complaints))
    places, rows = [place for place, _ in found], [row for _, row in found]
    if not rows:
        raise DataError(str(path), "holds no rows" + (" that can be read" if complaints.skipped else ""))
    return Source(str(path), tuple(dict.fromkeys(name for row in rows for name in row)), rows, places)


def read_folder(
    folder: Path, columns: tuple[str, ...], complaints: Complaints, named: Mapping[str, str]
) -> dict[str, Source]:
    """Read train, validation and test files of a folder; a folder with one file alone is a training split."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    found: dict[str, Path] = {}
    chosen = _splits_of([path.stem for path in files], named, str(folder))
    for path in files:
        split = chosen[path.stem]
        if split and split in found:
            both = f"{found[split].name} and {path.name}"
            raise DataError(str(folder), f"{both} both claim the {split} split")
        if split:
            found[split] = path
    if not found and len(files) == 1:
        found = {"train": files[0]}
    if "train" not in found:
        names = ", ".join(path.name for path in files) or "no data file"
        raise DataError(str(folder), f"needs a train file ({', '.join(SUFFIXES)}); it holds {names}")
    return {split: read_source(path, columns, complaints) for split, path in found.items()}


def read_hub(
    name: str,
    data_config: str | None,
    columns: tuple[str, ...],
    named: Mapping[str, str],
    revision: str | None = None,
) -> dict[str, Source]:
    """Load a Hugging Face data set id, or a folder of `save_to_disk`; the first split of each kind counts."""
    import datasets

    from stabviz.models.hub import hub

    problem = None
    try:
        if Path(name).is_dir():
            loaded = datasets.load_from_disk(name)
        else:
            with hub() as problem:
                loaded = datasets.load_dataset(name, data_config, revision=revision)
    except Exception as error:  # what it raises depends on the network, the hub and the files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if problem:
            first = f"the hub cannot be reached, {problem}"
        raise DataError(
            name,
            f"is neither a local file or folder nor a data set that could be loaded "
            f"({type(error).__name__}: {first})",
        ) from error
    sources: dict[str, Source] = {}
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    chosen = _splits_of(list(loaded), named, name)
    for split, data in loaded.items():
        kind = chosen[split]
        if kind and kind not in sources:
            sources[kind] = _table(data, f"{name}[{split}]", columns)
    if "train" not in sources:
        raise DataError(name, f"has no training split; it has {', '.join(loaded)}")
    return sources


def split_of(name: str) -> str | None:
    """Return the split that a file or split name speaks of, as in "dev" or "validation_matched"."""
    head = name.lower().replace("-", "_").replace(".", "_").split("_")[0]
    return next((split for split, names in SPLIT_NAMES.items() if head in names), None)


def _splits_of(names: list[str], named: Mapping[str, str], place: str) -> dict[str, str | None]:
    """Return the split of each name in the data: as the caller named it, else as it speaks of one."""
    for split, name in named.items():
        if name not in (*names, "none"):
            raise DataError(place, f"has no split {name!r} for {split}; it has {', '.join(names)}")
    wanted = {name: split for split, name in named.items()}
    return {name: wanted.get(name) or (None if split_of(name) in named else split_of(name)) for name in names}


def _table(data, file: str, columns: tuple[str, ...]) -> Source:
    """Take the named columns of a `datasets.Dataset`; the others may be pictures, and large."""
    rows = data.select_columns([name for name in columns if name in data.column_names]).to_list()
    return Source(file, tuple(data.column_names), rows, [f"row {i}" for i in range(len(data))], data.features)


def _parquet(path: Path, columns: tuple[str, ...]) -> Source:
    import datasets
    import pyarrow.parquet

    try:
        data = datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.read_table(path)))
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(str(path), f"is not a readable Parquet file ({error})") from error
    return _table(data, str(path), columns)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines; a byte that is not UTF-8 becomes a lone surrogate, which `undecoded` finds."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(str(path), "is UTF-16; save the file as UTF-8", row="line 1")
    yield from io.StringIO(
        content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"), newline=""
    )


def undecoded(text: str) -> str | None:
    """Say which byte of a line is not UTF-8, or None."""
    for i, letter in enumerate(text):
        if "\udc80" <= letter <= "\udcff":
            return (
                f"is not UTF-8: byte 0x{ord(letter) - 0xDC00:02x} after {text[max(0, i - 12) : i]!r}; "
                "save the file as UTF-8"
            )
    return None


def _csv_rows(path: Path, complaints: Complaints) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(_lines(path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            # an open quote swallows what follows: that cannot be counted, so it stops
            if "end of data" in str(error):
                raise DataError(str(path), "opens a quote that is never closed", row=place) from error
            complaints.add(str(path), place, None, f"is broken CSV ({error})")
            continue
        if fields is None:
            return
        wrong = undecoded("".join(fields))
        if header is None:
            header = fields
            if wrong or len(set(header)) < len(header):
                raise DataError(str(path), wrong or "names a column twice", row=place)
        elif wrong:
            column = next((name for name, text in zip(header, fields, strict=False) if undecoded(text)), None)
            complaints.add(str(path), place, column, wrong)
        elif fields and len(fields) != len(header):
            complaints.add(
                str(path), place, None, f"has {len(fields)} fields where the header has {len(header)}"
            )
        elif fields:  # a blank line is no row
            yield place, dict(zip(header, fields, strict=True))


def _json_rows(path: Path, complaints: Complaints) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = list(_lines(path))
    first = next((line.lstrip() for line in lines if line.strip()), "")
    if path.suffix == ".json" and first.startswith("["):
        yield from _json_list(path, "".join(lines), complaints)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place, wrong = f"line {number}", undecoded(line)
        try:
            row = {} if wrong else json.loads(line)
        except json.JSONDecodeError as error:
            row, wrong = {}, f"is broken JSON ({error.msg} at character {error.pos + 1})"
        if not wrong and not isinstance(row, dict):
            wrong = f"must be a JSON object; got {line.strip()[:40]!r}"
        if wrong:
            complaints.add(str(path), place, None, wrong)
        else:
            yield place, row


def _json_list(path: Path, text: str, complaints: Complaints) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(str(path), f"is broken JSON ({error.msg})", row=f"line {error.lineno}") from error
    for number, row in enumerate(rows):
        wrong = None if isinstance(row, dict) else f"must be a JSON object; got {row!r}"
        wrong = wrong or undecoded(json.dumps(row, ensure_ascii=False))
        if wrong:
            complaints.add(str(path), f"row {number}", None, wrong)
        else:
            yield f"row {number}", row
