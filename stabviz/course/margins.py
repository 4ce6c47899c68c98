"""`above`, `below`, `at_least`, `at_most`: a comparison that also knows by how much it holds.

A claim that holds by a hair fails on other seeds. `make claims` runs every lesson on fresh ones and sets the
smallest margin of each claim beside the spread of its margins.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bounds:
    """One or more comparisons that must all hold; joined by `&`."""

    margins: tuple[float, ...]
    """One a comparison: how far inside the bound the worst value lies, in its own unit; below 0 outside."""
    holds: bool
    """Whether all of them hold; on the bound itself only `at_least` and `at_most` do."""

    def __and__(self, other: "Bounds") -> "Bounds":
        if not isinstance(other, Bounds):
            raise TypeError(f"Bounds: & must join comparisons of stabviz.course; got {other!r}")
        return Bounds(self.margins + other.margins, self.holds and other.holds)

    def __bool__(self) -> bool:
        return self.holds


def above(values, limit) -> Bounds:
    """All values are greater than the limit, which may be an array of as many; NaN never is.

    Lesson: 00-start-here

    >>> above([3.0, 2.5], 2).margins, bool(above(2, 2))
    ((0.5,), False)
    """
    return _bounds("above", values, limit, sign=1, strict=True)


def below(values, limit) -> Bounds:
    """All values are less than the limit, which may be an array of as many; NaN never is.

    Lesson: 00-start-here

    >>> (below([1.0, 1.5], 2) & above(3, 1)).margins
    (0.5, 2.0)
    """
    return _bounds("below", values, limit, sign=-1, strict=True)


def at_least(values, limit) -> Bounds:
    """All values are the limit or greater, such as a number of seeds of eight; NaN never is.

    >>> bool(at_least(6, 6)), at_least(8, 6).margins
    (True, (2.0,))
    """
    return _bounds("at_least", values, limit, sign=1, strict=False)


def at_most(values, limit) -> Bounds:
    """All values are the limit or less; NaN never is.

    >>> bool(at_most([0, 1], 1))
    True
    """
    return _bounds("at_most", values, limit, sign=-1, strict=False)


def _bounds(function: str, values, limit, *, sign: int, strict: bool) -> Bounds:
    values, limit = (np.asarray(_as_numpy(x), dtype=np.float64) for x in (values, limit))
    if not values.size:
        raise ValueError(f"{function}: values must hold a number; got none")
    if limit.ndim and limit.shape != values.shape:
        raise ValueError(f"{function}: limit must be one number or {values.shape}; got {limit.shape}")
    # inf on either side is as far as can be, not inf - inf
    with np.errstate(invalid="ignore"):
        margins = np.where(values == limit, 0.0, sign * (values - limit))
    worst = float(margins.min())  # of a NaN and a number the minimum is NaN, and fails
    return Bounds((worst,), worst > 0 if strict else worst >= 0)


def _as_numpy(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value
