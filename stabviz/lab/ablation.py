"""Every "because" has an intervention: how much of the gap to a healthy run does each change take away?"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stabviz.lab.experiment import grid, named
from stabviz.lab.runs import train
from stabviz.trace import Trace

COVERAGE = 0.95
"""Least probability with which an interval holds the median, where there are seeds enough: six or more."""


def final_loss(trace: Trace) -> np.ndarray:
    """Return the mean loss of the last tenth of the steps, (R,); inf for a run that ended non-finite."""
    return trace.final()


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One setting, trained with every seed."""

    name: str
    changes: dict[str, Any]
    """What it changes against the broken setting; a function by its name."""
    values: tuple[float, ...]
    """The measure, one number a seed, in the order of `Ablation.seeds`."""
    median: float
    low: float
    high: float
    """Interval of the median over seeds."""
    share: float
    """Median over paired seeds of (broken - this) / (broken - healthy): 0 explains nothing, 1 all of the
    gap; below 0 it makes things worse."""
    share_low: float
    share_high: float
    columns: dict[str, Any] = field(default_factory=dict)
    """What else was read off the Trace of this row."""

    @property
    def sentence(self) -> str:
        """The finding in words."""
        low, high = (_percent(share) for share in (self.share_low, self.share_high))
        found = f"{self.name}: {_percent(self.share)} of the gap [{low}, {high}], median {self.median:.3g}"
        # Where broken is chaotic, rounding alone moves the shares: the interval tells that from an effect.
        return found + ("; cannot be told from no effect" if self.share_low <= 0 <= self.share_high else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """The table: broken first, healthy second, then the changes in their order."""

    rows: tuple[AblationRow, ...]
    seeds: tuple[int, ...]
    measure: str
    interval: str
    """What the intervals are, in words."""

    def __getitem__(self, name: str) -> AblationRow:
        """Return the row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"Ablation: name must be one of {[row.name for row in self.rows]}; got {name!r}")

    @property
    def gap(self) -> float:
        """Median of broken less median of healthy."""
        return self.rows[0].median - self.rows[1].median

    def table(self) -> list[dict[str, Any]]:
        """Return the rows as plain dicts, for `views.text_table` and `views.plot_ablation`."""
        return [
            {
                "run": row.name,
                "what it changes": ", ".join(map(_change, row.changes.items())) or "-",
                **row.columns,
                self.measure: row.median,
                f"{self.measure} low": row.low,
                f"{self.measure} high": row.high,
                "share": row.share,
                "share low": row.share_low,
                "share high": row.share_high,
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        seeds = f"{len(self.seeds)} paired seed{'s' * (len(self.seeds) > 1)}"
        gap = f"The gap is {self.gap:.3g} ({self.measure}, {seeds}); {self.interval}."
        if self.gap < 0:
            gap += " It is negative: healthy is the worse one here, if less is better."
        return "\n".join([gap, *(f"- {row.sentence}" for row in self.rows[2:])])


def ablate(
    broken: Mapping[str, Any],
    healthy: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]],
    *,
    measure: Callable[[Trace], Iterable[float]] = final_loss,
    seeds: Iterable[int] = range(8),
    columns: Mapping[str, Callable[[Trace], Any]] | None = None,
    device: str | None = None,
    trained: Callable[[dict[str, Any], tuple[int, ...]], Trace] | None = None,
) -> Ablation:
    """Train broken, healthy and each change with the same seeds; say what share of the gap each explains.

    `broken` holds knobs of `grid`; `healthy` and each of `changes` hold what they change against it.
    `measure(trace)` gives one number a run, low or high being good; NaN counts as the worst loss, inf.
    `trained(knobs, seeds)` gives the Trace of a setting where the lab cannot train it: one run a seed, in
    their order; knobs are then those that it understands. None: the lab.
    `columns` holds more to read off each row's Trace, by name: a count of jumps, say, one value a row.
    Shares are taken seed by seed, then their median. A seed with broken and healthy equal has no gap and no
    share. Where broken diverged, a change explains 1 of it if its own run did not, else 0; a run that
    diverges where broken does not explains -inf.

    Intervals are order statistics: the k-th smallest and k-th largest value, k as large as still holds the
    median with 95 %. Fewer than six seeds cannot, and the interval is their range.

    Raises: ValueError if a setting names the seed, `measure` does not give one number a run, or no seed has a
            gap

    >>> plain = dict(task="ravine", optimizer="sgd", schedule="constant", warmup_steps=0, steps=30)
    >>> found = ablate(plain | {"lr": 0.01}, {"lr": 0.05}, {"half way": {"lr": 0.02}}, seeds=range(2))
    >>> [round(row.share, 2) for row in found.rows]
    [0.0, 1.0, 0.48]
    """
    seeds = tuple(int(seed) for seed in seeds)
    for name, change in {"broken": broken, "healthy": healthy, **changes}.items():
        if not isinstance(change, Mapping):
            raise ValueError(f"ablate: {name} must be knobs by name, such as {{'lr': 0.01}}; got {change!r}")
    settings: dict[str, dict] = {"broken": {}}
    for name, change in {"healthy": healthy, **changes}.items():
        # What is as in broken is no change, and would only lengthen the table.
        settings[name] = {k: v for k, v in change.items() if k not in broken or broken[k] != v}
    if len(settings) != 2 + len(changes):
        raise ValueError(f"ablate: changes must not be called broken or healthy; got {list(changes)}")
    values, read = {}, {}
    for name, change in settings.items():
        if "seed" in change or "seed" in broken:
            raise ValueError(f"ablate: {name} must leave the seed to seeds=, which pairs the runs")
        knobs = {**broken, **change}
        trace = trained(knobs, seeds) if trained else train(grid(**knobs, seed=seeds), device=device)
        measured = np.asarray(measure(trace), float)
        if measured.shape != (len(seeds),):
            raise ValueError(
                f"ablate: measure must give one number a run, ({len(seeds)},); got {measured.shape}. "
                "A knob of an ablation is no list."
            )
        values[name] = np.where(np.isnan(measured), math.inf, measured)
        read[name] = {column: function(trace) for column, function in (columns or {}).items()}
    return _ablation(values, settings, read, seeds, named(measure).replace("_", " "))


def ablation_of(values: Mapping[str, Iterable[float]], *, measure: str, seeds: Iterable[int]) -> Ablation:
    """Set out as `ablate` does what was measured elsewhere: one number a seed and row.

    `values` holds "broken" and "healthy" first; low or high is good, and NaN counts as the worst loss, inf.

    Raises: ValueError if broken and healthy are not the first two, a row does not hold one number a seed, or
            no seed has a gap
    Lesson: 12-entities

    >>> rows = {"broken": [5, 6], "healthy": [1, 2], "new": [1, 3]}
    >>> found = ablation_of(rows, measure="loss", seeds=range(2))
    >>> found["new"].share
    0.875
    """
    seeds = tuple(int(seed) for seed in seeds)
    measured = {name: np.asarray(list(row), float) for name, row in values.items()}
    if list(measured)[:2] != ["broken", "healthy"]:
        raise ValueError(f"ablation_of: values must begin with broken and healthy; got {list(measured)}")
    for name, row in measured.items():
        if row.shape != (len(seeds),):
            raise ValueError(
                f"ablation_of: {name} must hold one number a seed, ({len(seeds)},); got {row.shape}"
            )
        measured[name] = np.where(np.isnan(row), math.inf, row)
    nothing: dict[str, dict[str, Any]] = {name: {} for name in measured}
    return _ablation(measured, nothing, nothing, seeds, measure)


def _ablation(
    values: Mapping[str, np.ndarray],
    settings: Mapping[str, Mapping[str, Any]],
    read: Mapping[str, dict[str, Any]],
    seeds: tuple[int, ...],
    measure: str,
) -> Ablation:
    rows = tuple(_row(name, settings[name], values, read[name]) for name in settings)
    return Ablation(rows=rows, seeds=seeds, measure=measure, interval=_words(len(seeds)))


def _row(
    name: str, change: Mapping[str, Any], values: Mapping[str, np.ndarray], columns: dict[str, Any]
) -> AblationRow:
    triples = zip(values["broken"].tolist(), values[name].tolist(), values["healthy"].tolist(), strict=True)
    shares = [share for triple in triples if (share := _share(*triple)) is not None]
    if not shares:
        raise ValueError("ablate: broken and healthy must differ with some seed; got no gap to explain")
    low, median, high = _interval(values[name].tolist())
    share_low, share, share_high = _interval(shares)
    return AblationRow(
        name=name,
        changes={key: named(value) for key, value in change.items()},
        values=tuple(values[name].tolist()),
        median=median,
        low=low,
        high=high,
        share=share,
        share_low=share_low,
        share_high=share_high,
        columns=columns,
    )


def _share(broken: float, value: float, healthy: float) -> float | None:
    """(broken - value) / (broken - healthy), and what that tends to where one of them is infinite."""
    if broken == healthy:
        return None
    if math.isinf(broken):
        return 0.0 if value == broken else 1.0
    if math.isinf(healthy):
        return 1.0 if value == healthy else 0.0
    return (broken - value) / (broken - healthy)


def _rank(count: int) -> int:
    """Largest k with P(the k-th smallest <= median <= the k-th largest) >= COVERAGE; 1 if there is none."""
    outside, k = 0.0, 0
    while k < count // 2:
        # Each value lies below the median with probability 1/2: a binomial tail on either side.
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - COVERAGE:
            break
        k += 1
    return max(k, 1)


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Lower end, median and upper end; infinite values have their place in the order."""
    ordered, k = sorted(values), _rank(len(values))
    middle = ordered[(len(values) - 1) // 2 : len(values) // 2 + 1]
    # Of an infinite and a finite middle the mean is infinite; of -inf and inf it would be NaN.
    median = sum(middle) / len(middle) if -math.inf not in middle or math.inf not in middle else middle[0]
    return ordered[k - 1], median, ordered[-k]


def _words(count: int) -> str:
    k = _rank(count)
    covered = 1 - sum(2 * math.comb(count, i) for i in range(k)) / 2**count
    if covered < COVERAGE:
        return "intervals run from the lowest to the highest seed"
    rank = "" if k == 1 else {2: "second ", 3: "third "}.get(k, f"{k}th ")
    ends = f"the {rank}lowest to the {rank}highest of {count} seeds"
    return f"intervals run from {ends}, which holds the median with {covered:.0%}"


def _change(knob: tuple[str, Any]) -> str:
    name, value = knob
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %" if math.isfinite(share) else f"{share} %"  # round: 0, never -0
