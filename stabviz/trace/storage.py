"""Traces on disk: JSON lines to read with any tool, Parquet for large ones. Both round-trip exactly."""

from pathlib import Path

import numpy as np

from stabviz.files import as_number, dumps, loads, write_atomically
from stabviz.trace.trace import Trace

SCHEMA = "stabviz.trace/1"
_METADATA_KEY = b"stabviz.trace"


def save(trace: Trace, path: str | Path) -> Path:
    """Write `trace` to .jsonl or .parquet, whole or not at all; the round trip through `load` is exact."""
    path = Path(path)
    write = _format(path, "save")[0]
    return write_atomically(path, lambda scratch: write(trace, scratch))


def load(path: str | Path) -> Trace:
    """Read a Trace; a damaged file raises ValueError that names file and line (Parquet: file)."""
    path = Path(path)
    return _format(path, "load")[1](path)


def _format(path: Path, function: str):
    formats = {".jsonl": (_write_jsonl, _read_jsonl), ".parquet": (_write_parquet, _read_parquet)}
    if path.suffix not in formats:
        raise ValueError(f"trace.{function}: path must end in .jsonl or .parquet; got {str(path)!r}")
    return formats[path.suffix]


def _header(trace: Trace) -> str:
    header = {"schema": SCHEMA, "n_runs": trace.n_runs, "n_steps": trace.n_steps}
    # JSON knows one kind of number: the dtypes bring float32 back as float32
    header["signals"] = {name: str(values_RS.dtype) for name, values_RS in trace.signals.items()}
    return dumps({**header, "config": trace.config, "runs": trace.runs, "events": trace.events})


def _trace(path: Path, header: dict, steps, signals: dict) -> Trace:
    try:
        arrays = {name: np.asarray(signals[name], dtype=dtype) for name, dtype in header["signals"].items()}
        plain = {name: header[name] for name in ("runs", "config", "events")}
        return Trace(steps=np.asarray(steps, dtype=np.int64), signals=arrays, **plain)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"trace.load: {path} line 1: header must describe what follows ({error})") from error


def _read_header(path: Path, text: str) -> dict:
    try:
        header = loads(text)
        known = header["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"trace.load: {path} line 1: must be a Trace header; got {text[:60]!r}") from error
    if not known:
        got = f"{header['schema']!r}. The file comes from another version of stabviz"
        raise ValueError(f"trace.load: {path} line 1: schema must be {SCHEMA!r}; got {got}")
    missing = {"n_runs", "n_steps", "signals", "config", "runs", "events"} - set(header)
    if missing:
        raise ValueError(f"trace.load: {path} line 1: header must be whole; got none of {sorted(missing)}")
    return header


def _write_jsonl(trace: Trace, path: Path) -> None:
    columns = {name: values_RS.T.astype(np.float64).tolist() for name, values_RS in trace.signals.items()}
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(_header(trace) + "\n")
        for s, step in enumerate(trace.steps.tolist()):
            values = {name: column[s] for name, column in columns.items()}
            file.write(dumps({"step": step, "values": values}) + "\n")


def _read_jsonl(path: Path) -> Trace:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"trace.load: {path} line 1: must be UTF-8 text ({error})") from error
    header = _read_header(path, lines[0])
    rows = [line for line in lines[1:] if line]
    if len(rows) != header["n_steps"]:
        where = f"{path} line {len(rows) + 2}"
        got = f"{len(rows)}. The file was cut short or added to"
        raise ValueError(f"trace.load: {where}: must hold {header['n_steps']} steps; got {got}")
    steps = []
    columns: dict[str, list] = {name: [] for name in header["signals"]}
    for number, line in enumerate(rows, start=2):
        try:
            step, values = _row(line, header)
        except (ValueError, KeyError, TypeError) as error:
            what = f"must be one whole step; got {line[:60]!r} ({error})"
            raise ValueError(f"trace.load: {path} line {number}: {what}") from error
        steps.append(step)
        for name, column in columns.items():
            column.append(values[name])
    shape = (header["n_steps"], header["n_runs"])
    signals = {name: np.array(column, dtype=np.float64).reshape(shape).T for name, column in columns.items()}
    return _trace(path, header, steps, signals)


def _row(line: str, header: dict) -> tuple[int, dict[str, list[float]]]:
    row = loads(line)
    values = {name: [float(as_number(v)) for v in row["values"][name]] for name in header["signals"]}
    for name, numbers in values.items():
        if len(numbers) != header["n_runs"]:
            raise ValueError(f"{name} has {len(numbers)} values for {header['n_runs']} runs")
    if type(row["step"]) is not int:
        raise ValueError(f"step is {row['step']!r}")
    return row["step"], values


def _write_parquet(trace: Trace, path: Path) -> None:
    """One row per run and step, one column per signal: what a data-frame library expects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    R, S = trace.n_runs, trace.n_steps
    columns = {"run": np.repeat(np.arange(R, dtype=np.int32), S), "step": np.tile(trace.steps, R)}
    columns |= {name: values_RS.reshape(-1) for name, values_RS in trace.signals.items()}
    # from_pandas=False: otherwise NaN would become a null and the round trip would lose the difference
    table = pa.table({name: pa.array(column, from_pandas=False) for name, column in columns.items()})
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: _header(trace).encode()}), path)


def _read_parquet(path: Path) -> Trace:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileNotFoundError(f"trace.load: path must be an existing file; got {str(path)!r}")
    try:
        # without partitioning=None a folder named like lr=0.1 above the file would become a column
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"trace.load: {path}: must be a whole Parquet file ({error})") from error
    text = (table.schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise ValueError(f"trace.load: {path}: must carry a Trace header; got a plain Parquet file")
    header = _read_header(path, text.decode("utf-8"))
    shape = (header["n_runs"], header["n_steps"])
    if table.num_rows != shape[0] * shape[1]:
        raise ValueError(f"trace.load: {path}: must hold runs x steps = {shape} rows; got {table.num_rows}")
    present = [name for name in header["signals"] if name in table.column_names]
    signals = {name: table[name].to_numpy().reshape(shape) for name in present}
    return _trace(path, header, table["step"].to_numpy()[: shape[1]], signals)
