"""metrics.jsonl: what a real run writes as it goes, one line a step, and how it is read back as a Trace.

    {"schema": "stabviz.metrics/1", "config": {...}}
    {"step": 12, "values": {"loss_nats": 2.1, "grad_norm_preclip": 0.9, "grad_norm_preclip/layer0": 0.2}}
    {"step": 12, "event": "non_finite", "rows": [81, 407]}
    {"step": 49, "evaluation": {"validation_loss_nats": 0.8, "validation_score": 0.71}}

`step` counts the batches that were taken, so that it only ever grows; a skipped step has its line like any
other, with the raw values; NaN is {"$float": "NaN"}, as `stabviz.files` spells it. The file holds no clock:
the same seed writes the same bytes.
"""

import math
import os
from pathlib import Path

import numpy as np

from stabviz.files import as_number, dumps, loads
from stabviz.trace.trace import Trace

SCHEMA = "stabviz.metrics/1"


class MetricsLog:
    """Append-only writer of metrics.jsonl; every line is whole once `flush` has returned."""

    def __init__(self, path: str | Path, config: dict, *, keep_bytes: int | None = None):
        """Start a new file, or with `keep_bytes` go on with one from which all that came later is cut."""
        self.path = Path(path)
        if keep_bytes is None:
            self._file = open(self.path, "w", encoding="utf-8", newline="\n")
            self._write({"schema": SCHEMA, "config": config})
        else:
            size = self.path.stat().st_size
            if size < keep_bytes:  # truncate would fill the gap with zero bytes
                wanted = f"at least {keep_bytes} bytes to go on"
                raise ValueError(f"MetricsLog: {self.path} must hold {wanted}; got {size}")
            os.truncate(self.path, keep_bytes)
            self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        self.flush()

    def step(self, step: int, values: dict[str, float]) -> None:
        """Write the signals of one step."""
        self._write({"step": step, "values": values})

    def event(self, step: int, kind: str, **details) -> None:
        """Write what happened at a step: non_finite, overflow, spike, rewind, out_of_memory, ..."""
        self._write({"step": step, "event": kind, **details})

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Write the scores measured after a step."""
        self._write({"step": step, "evaluation": values})

    def flush(self) -> int:
        """Hand everything to the file system and return the file's size in bytes."""
        self._file.flush()
        return self._file.tell()

    def sync(self) -> int:
        """Put everything on the disk, which a checkpoint counts on after a power cut; return the size."""
        size = self.flush()
        os.fsync(self._file.fileno())
        return size

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict) -> None:
        self._file.write(dumps(line) + "\n")


def read_metrics(path: str | Path) -> Trace:
    """Read metrics.jsonl, whole or still growing, as a Trace of one run.

    A signal that a step did not measure is NaN there. A last line that was cut short is left out.

    Raises: ValueError that names file and line for anything else that is damaged
    Lesson: 11-classification
    """
    path = Path(path)
    header, lines = _lines(path)
    steps: dict[int, dict[str, float]] = {}
    events = []
    # a step and the evaluation after it are two lines, and one row of the Trace
    for number, line in lines:
        try:
            step = line["step"]
            if "event" in line:
                details = {k: as_number(v) for k, v in line.items() if k not in ("step", "event")}
                events.append({"run": 0, "step": step, "kind": line["event"], **details})
            elif "evaluation" in line or "values" in line:
                values = line["values"] if "values" in line else line["evaluation"]
                steps.setdefault(step, {}).update({name: float(as_number(v)) for name, v in values.items()})
            else:
                raise KeyError("values, event or evaluation")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"must be a step, an event or an evaluation ({error})"
            raise ValueError(f"read_metrics: {path} line {number}: {what}") from error
    order = sorted(steps)
    names = list(dict.fromkeys(name for step in order for name in steps[step]))
    signals = {name: np.array([[steps[step].get(name, math.nan) for step in order]]) for name in names}
    config = {name: as_number(value) for name, value in header.get("config", {}).items()}
    label = {"seed": config["seed"]} if "seed" in config else {}
    return Trace(
        steps=np.array(order, dtype=np.int64), signals=signals, runs=[label], config=config, events=events
    )


def _lines(path: Path) -> tuple[dict, list[tuple[int, dict]]]:
    raw = path.read_bytes().split(b"\n")
    whole, last = raw[:-1], raw[-1]  # what stands after the last newline was cut short, or is empty
    if not whole:
        raise ValueError(f"read_metrics: {path} line 1: must be the header of a run; got {last[:60]!r}")
    parsed = []
    for number, line in enumerate(whole, start=1):
        try:
            parsed.append((number, loads(line)))
        except ValueError as error:
            what = f"must be one JSON object; got {line[:60]!r}"
            raise ValueError(f"read_metrics: {path} line {number}: {what}") from error
    header = parsed[0][1]
    schema = header.get("schema") if isinstance(header, dict) else header
    if schema != SCHEMA:
        raise ValueError(f"read_metrics: {path} line 1: schema must be {SCHEMA!r}; got {schema!r}")
    return header, parsed[1:]
