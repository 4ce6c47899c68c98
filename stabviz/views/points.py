"""The points behind a curve: runs in groups, what was measured at which step, fewer points for long runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabviz.trace import Trace
from stabviz.trace.spikes import median_without_nan
from stabviz.trace.trace import WATCHED

MOST_POINTS = 400
"""A curve of more points than this is thinned: a picture of 700 px cannot show more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs drawn as one curve: what they share, and which they are."""

    name: str
    """For the legend: "lr=0.001", or "all runs"."""
    key: str
    """For the gid: stable, without blanks."""
    labels: dict
    """What its runs share."""
    runs: tuple[int, ...]
    noun: str
    """What the runs differ in: "seed" where nothing else varies among them, else "run"."""

    @property
    def size(self) -> str:
        return f"{len(self.runs)} {self.noun}{'s' * (len(self.runs) != 1)}"


def group_runs(trace: Trace, by: str | Sequence[str] | None, *, apart: Sequence[str] = ()) -> list[Group]:
    """Put the runs with equal labels `by` together, in order of those labels.

    None means every label but the seed and those in `apart` (what the x axis shows).
    """
    known = trace.label_keys
    if by is None:
        by = [key for key in known if key != "seed" and key not in apart]
    keys = [by] if isinstance(by, str) else list(by)
    for key in keys:
        if key not in known:
            raise ValueError(f"group_runs: by must be among the labels {known}; got {key!r}")
    found: dict[tuple, list[int]] = {}
    for r, run in enumerate(trace.runs):
        found.setdefault(tuple(run.get(key) for key in keys), []).append(r)
    within = [k for k in known if k not in keys and k not in apart]
    noun = "seed" if within == ["seed"] else "run"
    groups = []
    for values in sorted(found, key=lambda values: tuple(map(_order, values))):
        labels = dict(zip(keys, values, strict=True))
        name = ", ".join(f"{key}={short(value)}" for key, value in labels.items())
        gid = (name or "all").replace(", ", ",").replace(" ", "_")  # a blank would end an id of the SVG
        groups.append(
            Group(name=name or "all runs", key=gid, labels=labels, runs=tuple(found[values]), noun=noun)
        )
    return groups


def quantiles(values_RS: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles over runs at each step, a non-finite value counting as the worst; inf where that decides.

    Leaving dead runs out would draw the survivors' curve, which looks better the more runs have died.
    """
    # Not infinity: np.quantile interpolates, and infinity minus infinity would be NaN.
    worst = 1e300
    filled_RS = np.where(np.isfinite(values_RS), values_RS.astype(np.float64), worst)
    found = np.quantile(filled_RS, shares, axis=0)
    return np.where(found > worst / 1e6, np.inf, found)


def thin(x_S: np.ndarray, y_S: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most `most` points of a curve, among them the lowest and highest of every stretch.

    >>> import numpy as np
    >>> y_S = np.zeros(9973)
    >>> y_S[5003] = 7.0
    >>> x, y = thin(np.arange(9973), y_S)
    >>> len(x) <= 400, y.max(), x[y.argmax()]
    (True, np.float64(7.0), np.int64(5003))
    """
    if len(x_S) <= most:
        return x_S, y_S
    # Two points a stretch, and both ends: every n-th point would lose a spike of one step.
    edges = np.linspace(0, len(x_S), (most - 2) // 2 + 1).astype(int)
    keep = {0, len(x_S) - 1}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        part = np.where(np.isfinite(y_S[low:high]), y_S[low:high], np.nan)
        if np.isfinite(part).any():
            keep |= {low + int(np.nanargmin(part)), low + int(np.nanargmax(part))}
        else:
            keep.add(int(low))  # a stretch without a value leaves its gap
    at = np.array(sorted(keep))
    return x_S[at], y_S[at]


def running_median(values_S, width: int, *, gaps: bool = False) -> np.ndarray:
    """Median of the `width` values around each one, fewer at the ends; NaN where none of them is finite.

    With `gaps` it is NaN wherever the value itself is: a curve does not go on where the run did not.

    >>> running_median([1.0, 9.0, 2.0, float("nan"), 4.0], 3).tolist()
    [5.0, 2.0, 5.5, 3.0, 4.0]
    """
    values_S = np.asarray(values_S, np.float64)
    values_S = np.where(np.isfinite(values_S), values_S, np.nan)
    half = width // 2
    padded_S = np.concatenate([np.full(half, np.nan), values_S, np.full(half, np.nan)])
    median_S = median_without_nan(sliding_window_view(padded_S, 2 * half + 1), least=1)
    return np.where(np.isfinite(values_S), median_S, np.nan) if gaps else median_S


def thin_band(x_S, low_S, high_S, most: int = MOST_POINTS):
    """Keep at most `most` columns of a band, each as wide as the widest of its stretch."""
    if len(x_S) <= most:
        return x_S, low_S, high_S
    edges = np.linspace(0, len(x_S), most + 1).astype(int)[:-1]
    return x_S[edges], np.minimum.reduceat(low_S, edges), np.maximum.reduceat(high_S, edges)


def measured(trace: Trace, run: int, signal: str) -> np.ndarray:
    """At which steps a run measured a signal, (S,) bool: a costly one is NaN where nobody looked.

    NaN of the loss or the total gradient norm is a measurement. For any other signal NaN is one only where
    the run ended non-finite, and for scores of an evaluation never. Infinity always is one.
    """
    values_S = trace[signal][run]
    if signal in WATCHED:
        return np.ones(values_S.shape, dtype=bool)
    dead = None if signal.startswith("validation") else trace.non_finite_step(run)
    return ~np.isnan(values_S) | (trace.steps == (-1 if dead is None else dead))


def measured_columns(trace: Trace, signal: str, runs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which any of the runs measured a signal, and its values there, (runs, steps)."""
    measured_RS = np.stack([measured(trace, run, signal) for run in runs])
    column_S = measured_RS.any(axis=0)
    return trace.steps[column_S], trace[signal][list(runs)][:, column_S].astype(np.float64)


def non_finite_marks(trace: Trace, run: int, signal: str) -> list[tuple[float, float]]:
    """Where the signal of a run becomes non-finite: (step, last finite value before it, NaN if none)."""
    values_S = trace[signal][run].astype(np.float64)
    bad_S = ~np.isfinite(values_S) & measured(trace, run, signal)
    dead = trace.non_finite_step(run)
    onsets = [s for s in np.flatnonzero(bad_S) if s == 0 or not bad_S[s - 1]]
    marks = []
    for s in onsets:
        before = values_S[:s][np.isfinite(values_S[:s])]
        step = float(trace.steps[s])
        # A run that is looked at every few steps may have died between two of them.
        if dead is not None and s == onsets[-1] and bad_S[s:].all():
            step = min(step, float(dead))
        marks.append((step, float(before[-1]) if before.size else math.nan))
    return marks


def _order(value):
    # numbers first: one label may hold numbers in some runs and text or None in others
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, str(value))


def short(value) -> str:
    """Return a label's value as a legend or a tick writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
