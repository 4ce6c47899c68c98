"""One curve judged by its own past: start and end, noise, rises that last, stretches that are flat.

For a curve of which neither the floor nor the noise of a row is known: a loss in another program's log, a
validation loss, a reward with its sign turned around.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabviz.trace.spikes import MAD_TO_SIGMA

FINAL_SHARE = 0.1
"""Share of the rows that "final" averages: single batches are noisy, a tenth of the run is not."""
LEVEL_SHARE, LEVEL_LEAST = 0.05, 5
"""Rows of the running median: a leap of less than half of a twentieth of the run is no level."""
RISE_FACTOR = 1.5
"""A level half as high again as the lowest before it: between two and ten in real runs that were lost."""
RISE_SIGMAS = 8.0
"""And that many deviations of one row: healthy real runs wander up to 4.5."""
RISE_OF_START = 0.05
"""And a twentieth of where the curve began: a loss near 0 doubles at no cost."""
FLAT_BINS, FLAT_SHARE = 20, 0.4
"""A stretch of eight twentieths is worth a word."""
FLAT_SIGMAS, FLAT_OF_GAIN = 4.0, 0.02
"""Flat: its medians differ by no more than their noise explains, or by a fiftieth of what the run gained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """A rise of the level above the lowest one before it. Rows count from 0."""

    low_row: int
    low: float
    peak_row: int
    peak: float
    lasts: bool
    """Whether the last level is still as high."""


@dataclass(frozen=True)
class Curve:
    """A curve over its rows, (S,); what is not finite is passed over."""

    values_S: np.ndarray

    @cached_property
    def row_N(self) -> np.ndarray:
        return np.flatnonzero(np.isfinite(self.values_S))

    @cached_property
    def finite_N(self) -> np.ndarray:
        return self.values_S[self.row_N]

    @cached_property
    def start(self) -> float:
        """Median of the first three values."""
        return float(np.median(self.finite_N[:3])) if self.row_N.size else np.nan

    @cached_property
    def final(self) -> float:
        """Mean of the last tenth of the rows, infinite where none is left."""
        tail = self.values_S[-max(1, round(FINAL_SHARE * len(self.values_S))) :]
        return float(tail[np.isfinite(tail)].mean()) if np.isfinite(tail).any() else np.inf

    @cached_property
    def noise(self) -> float:
        """Robust deviation of one row, from steps between neighbours: a slow course hardly moves it."""
        if self.row_N.size < 3:
            return 0.0
        # the difference of two rows has twice the variance of one
        return MAD_TO_SIGMA * float(np.median(np.abs(np.diff(self.finite_N)))) / np.sqrt(2)

    @cached_property
    def level_N(self) -> np.ndarray:
        """Running median; entry n covers `width` rows from n * `stride` on."""
        return np.median(sliding_window_view(self.finite_N, self.width)[:: self.stride], axis=1)

    @cached_property
    def width(self) -> int:
        return min(max(LEVEL_LEAST, round(LEVEL_SHARE * self.row_N.size)), self.row_N.size)

    @property
    def stride(self) -> int:
        """Thousands of windows of thousands of rows would cost seconds: a window moves by a fifth at most."""
        return max(1, self.width // 5)

    def rise(self) -> Rise | None:
        """The highest rise of the level that is no noise; None where there is none."""
        if not self.row_N.size:
            return None
        low_N = np.minimum.accumulate(self.level_N)
        height_N = self.level_N - low_N
        least_N = np.maximum((RISE_FACTOR - 1) * np.abs(low_N), RISE_OF_START * abs(self.start))
        high_N = height_N >= np.maximum(least_N, RISE_SIGMAS * self.noise)
        if not high_N.any() or not height_N.any():
            return None
        peak = int(np.argmax(np.where(high_N, height_N, -np.inf)))
        low = int(np.argmin(self.level_N[:peak]))
        middle = self.width // 2
        return Rise(
            low_row=int(self.row_N[low * self.stride + middle]),
            low=float(self.level_N[low]),
            peak_row=int(self.row_N[peak * self.stride + middle]),
            peak=float(self.level_N[peak]),
            lasts=bool(high_N[-1]),
        )

    def gain(self) -> float:
        """How far the curve came down, as a share of its start: by its first rows or by its first tenth.

        The first three rows are few: twice their error is taken off.
        """
        tenth = max(3, round(FINAL_SHARE * self.row_N.size))
        first, last = np.median(self.finite_N[:tenth]), np.median(self.finite_N[-tenth:])
        # the median of three deviates by 0.67 of one row
        gained = max(first - last, self.start - last - 2 * 0.67 * self.noise)
        return float(gained / abs(self.start)) if self.start else 0.0

    def trend_sigmas(self) -> float:
        """By how many standard errors the last fifth lies below the first."""
        fifth = max(3, self.row_N.size // 5)
        first, last = self.finite_N[:fifth], self.finite_N[-fifth:]
        error = np.sqrt((first.var() + last.var()) / fifth)
        return float((first.mean() - last.mean()) / error) if error else 0.0

    def flat_stretch(self) -> tuple[int, int, float] | None:
        """First and last row of the longest flat stretch, and its level; None below FLAT_SHARE of the run."""
        if self.row_N.size < 2 * FLAT_BINS:
            return None
        parts = np.array_split(self.finite_N, FLAT_BINS)
        level_B = np.array([np.median(part) for part in parts])
        # a median deviates by 1.25 times as much as a mean
        error = 1.25 * self.noise / np.sqrt(self.row_N.size / FLAT_BINS)
        limit = max(FLAT_SIGMAS * error, FLAT_OF_GAIN * (self.start - level_B.min()))
        spans = [
            (last - first, first, last)
            for first in range(FLAT_BINS)
            for last in range(first, FLAT_BINS)
            if np.ptp(level_B[first : last + 1]) <= limit
        ]
        length, first, last = max(spans)
        if length + 1 < FLAT_SHARE * FLAT_BINS:
            return None
        edge_B = np.cumsum([0, *map(len, parts)])
        level = float(np.median(level_B[first : last + 1]))
        return int(self.row_N[edge_B[first]]), int(self.row_N[edge_B[last + 1] - 1]), level
