"""Rows of the benchmark: two things timed side by side, a ratio, a target, and what it came to."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import numpy
import torch

from stabviz.finetune.about import device_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. A row that could not be measured has a note and no ratio."""

    what: str
    ours: float | None = None
    reference: float | None = None
    unit: str = "ms"
    ratio: float | None = None
    """Whatever the target is about; for most rows one time over the other."""
    target: float | None = None
    at_least: bool = False
    """True: the ratio must reach the target. False: it must not pass it."""
    spread: tuple[float, float] | None = None
    """Quartiles of the ratio over the rounds."""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not run"
        if self.target is None:
            return "-"
        return (
            "met" if (self.ratio >= self.target if self.at_least else self.ratio <= self.target) else "missed"
        )


def side_by_side(
    functions: dict[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Time each function once a round, in turn, so that whatever else the machine does strikes all alike.

    Units: seconds per call
    """
    for function in functions.values():
        for _ in range(3):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def row_of(
    what: str,
    numerator: list[float],
    denominator: list[float],
    *,
    ours: list[float],
    reference: list[float],
    scale: float = 1.0,
    **fields,
) -> Row:
    """Make a row from seconds by round. The ratio is that of the lower quartiles: a busy machine only adds
    time.

    `scale` multiplies the ratio: 16 where one step of the engine does what 16 steps of the reference do.
    """
    by_round = [scale * a / b for a, b in zip(numerator, denominator, strict=True)]
    low, _, high = statistics.quantiles(by_round, n=4, method="inclusive")
    return Row(
        what=what,
        ours=quiet(ours) * 1e3,
        reference=quiet(reference) * 1e3,
        ratio=scale * quiet(numerator) / quiet(denominator),
        spread=(low, high),
        **fields,
    )


def slowdown(
    what: str, ours: list[float], reference: list[float], target: float | None = None, **fields
) -> Row:
    """Ours over theirs, at most `target` if there is one."""
    return row_of(what, ours, reference, ours=ours, reference=reference, target=target, **fields)


def speedup(what: str, ours: list[float], reference: list[float], target: float, **fields) -> Row:
    """Theirs over ours, at least `target`."""
    return row_of(
        what, reference, ours, ours=ours, reference=reference, target=target, at_least=True, **fields
    )


def quiet(seconds: list[float]) -> float:
    """Return the lower quartile."""
    return statistics.quantiles(seconds, n=4, method="inclusive")[0] if len(seconds) > 1 else seconds[0]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def markdown(rows: list[Row], device: dict[str, str]) -> str:
    """Return the table, and under it the machine it was measured on."""
    heads = ("what", "ours", "reference", "unit", "ratio", "quartiles", "target", "", "note")
    lines = []
    for row in rows:
        target = "" if row.target is None else f"{'>=' if row.at_least else '<='} {_number(row.target)}"
        spread = "" if row.spread is None else "..".join(map(_number, row.spread))
        lines.append(
            (
                row.what,
                _number(row.ours),
                _number(row.reference),
                row.unit if row.ours is not None else "",
                _number(row.ratio),
                spread,
                target,
                row.verdict,
                row.note,
            )
        )
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]

    def joined(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    table = [joined(heads), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(joined, lines)]
    machine = [f"- {name}: {value}" for name, value in device.items()]
    return "\n".join([*table, "", *machine, ""])


def device() -> dict[str, str]:
    """Return what a reader must know of the machine to judge the figures."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": device_name("cpu"),
        "cores": str(torch.get_num_threads()),
        "load before": load,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
        "date": date.today().isoformat(),
    }
