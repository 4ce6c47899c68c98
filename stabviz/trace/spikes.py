"""Spikes of a curve, by the median and the robust deviation of the values before each one.

Median and median absolute deviation are used because a mean and a standard deviation are moved by the very
spike that they should find.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SPIKE_SIGMAS = 7.0
"""Seven deviations, as in the spike score of OLMo 2; plain ones there, robust ones here."""
SPIKE_WINDOW = 50
"""Steps before the one in question. OLMo 2 takes 1,000 of a long run; runs here have hundreds."""
SPIKE_HISTORY = 20
"""Fewer values than this give no usable deviation; before that only EARLY_HEIGHT tells a spike."""
MAD_TO_SIGMA = 1.4826  # for a normal distribution, sigma = 1.4826 x median absolute deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """One excursion above the running window; neighbouring high steps count as one."""

    index: int
    """Position of its highest value."""
    value: float
    expected: float
    """Level just before it: median of the five values before its first step."""
    sigmas: float
    """Greatest height above the window's median, in robust deviations (1.4826 x median absolute
    deviation)."""
    recovered: bool
    """Whether a later value came back within half of the excursion."""


def find_spikes(
    values_S, *, sigmas: float = SPIKE_SIGMAS, window: int = SPIKE_WINDOW, min_height: float = 0.0
) -> list[Spike]:
    """Find upward jumps beyond `sigmas` robust deviations of the running window before each value.

    Median and median absolute deviation are used because a mean and a standard deviation are moved by the
    very spike that they should find. The height counts from the window's median. A fall within the window is
    taken out of the deviation, or no spike would be found while the loss still falls; a rise is left in, so
    that a steady rise is no spike.

    Shapes: values_S (S,); non-finite values are passed over
    Units:  min_height in the unit of the values
    Raises: ValueError if window < SPIKE_HISTORY
    Source: OLMo 2, 2024, arXiv:2501.00656, spike score (7 deviations, window 1,000); deviations: robust
            estimates, shorter window, smallest height

    >>> import numpy as np
    >>> loss_S = 2 + 0.01 * np.sin(np.arange(97.0))
    >>> loss_S[61] = 3.0
    >>> [spike.index for spike in find_spikes(loss_S)]
    [61]
    """
    if window < SPIKE_HISTORY:
        raise ValueError(f"find_spikes: window must be at least {SPIKE_HISTORY} values; got {window!r}")
    values_S = np.asarray(values_S, dtype=np.float64)
    if not values_S.size:
        return []
    # The `window` values before each one, NaN for those that are missing: a value does not judge itself.
    finite_S = np.where(np.isfinite(values_S), values_S, np.nan)
    before_SW = sliding_window_view(np.concatenate([np.full(window, np.nan), finite_S])[:-1], window)
    height_S = values_S - median_without_nan(before_SW)
    with np.errstate(invalid="ignore"):
        high_S = np.isfinite(values_S) & (height_S >= min_height) & (height_S > 0)
    # only where it is high at all: the deviation costs two sorts of each window
    sigma_S = np.full(values_S.shape, np.nan)
    sigma_S[high_S] = _robust_deviation(before_SW[high_S])
    high_S[high_S] = height_S[high_S] > sigmas * sigma_S[high_S]
    found = []
    for first, last in _stretches(high_S):
        stretch = slice(first, last + 1)
        top = int(first) + int(np.nanargmax(values_S[stretch]))
        before = values_S[:first]
        expected = float(np.median(before[np.isfinite(before)][-5:]))
        limit = expected + (values_S[top] - expected) / 2
        # a noise-free window deviates by 0: `tiny` in its place gives a huge number of deviations, not 0/0
        sigmas_S = height_S[stretch] / np.maximum(sigma_S[stretch], np.finfo(float).tiny)
        found.append(
            Spike(
                index=top,
                value=float(values_S[top]),
                expected=expected,
                sigmas=float(np.nanmax(sigmas_S)),
                recovered=bool(np.any(values_S[top + 1 :] <= limit)),
            )
        )
    return found


def median_and_deviation(values_SW) -> tuple[np.ndarray, np.ndarray]:
    """Return the median and the robust deviation (1.4826 x median absolute deviation) of each window.

    Shapes: values_SW (S, W), NaN for what is missing -> median_S, deviation_S (S,), NaN where fewer than
            SPIKE_HISTORY values are there
    """
    median_S = median_without_nan(values_SW)
    return median_S, MAD_TO_SIGMA * median_without_nan(np.abs(values_SW - median_S[:, None]))


def _robust_deviation(before_SW):
    """Robust deviation within each window, about its fall: not about its rise."""
    lag, window = 10, before_SW.shape[1]  # a slope over ten steps hardly feels the noise of single ones
    slope_S = median_without_nan(before_SW[:, lag:] - before_SW[:, :-lag]) / lag
    fall_S = np.minimum(np.nan_to_num(slope_S), 0.0)
    level_SW = before_SW - fall_S[:, None] * (np.arange(window) - (window - 1) / 2)
    return median_and_deviation(level_SW)[1]


def median_without_nan(values_SW, least: int = SPIKE_HISTORY) -> np.ndarray:
    """np.nanmedian by row without its Python loop; NaN where fewer than `least` values are left."""
    if values_SW.shape[1] < least:
        return np.full(len(values_SW), np.nan)
    sorted_SW = np.sort(values_SW, axis=1)  # NaN goes last
    count_S = np.isfinite(values_SW).sum(axis=1)
    row_S = np.arange(len(values_SW))
    middle_S = (sorted_SW[row_S, np.maximum(count_S - 1, 0) // 2] + sorted_SW[row_S, count_S // 2]) / 2
    return np.where(count_S >= least, middle_S, np.nan)


def _stretches(high_S):
    """First and last index of each run of True; gaps of fewer than SPIKE_HISTORY values are bridged."""
    at = np.flatnonzero(high_S)
    if not at.size:
        return []
    cuts = np.flatnonzero(np.diff(at) >= SPIKE_HISTORY)
    return list(zip(at[np.r_[0, cuts + 1]], at[np.r_[cuts, at.size - 1]], strict=True))
