"""`claim`: a figure in the prose is computed in its lesson, over several seeds, and asserted."""

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np

from stabviz.course.progress import try_to_record


class ClaimFailed(AssertionError):
    """A claim of a lesson did not hold on this machine."""


def claim(statement: str, holds, *, measured) -> None:
    """Print one line that is the same on every machine, and below it what was measured here.

    nbval compares the first line and blanks the second (tests/nbval_sanitize.cfg). Put numbers that may
    differ between machines into `measured` only. `measured` is a number, a text, a sequence, or a mapping
    of names to these.

    Raises: ClaimFailed if `holds` is False or a measured number is NaN; ValueError if `holds` is not a bool,
            or the statement is empty or of several lines
    Lesson: 00-start-here

    >>> claim("two is more than one", 2 > 1, measured={"two": 2.0, "one": 1.0})
    ✓ claim: two is more than one
      measured: two 2, one 1
    """
    if not isinstance(statement, str) or not statement.strip() or "\n" in statement:
        raise ValueError(f"claim: statement must be one line of text; got {statement!r}")
    if not isinstance(holds, bool | np.bool_):
        hint = "Reduce it with .all() or .any(), whichever is meant, and bool()."
        raise ValueError(f"claim: holds must be True or False; got {holds!r}. {hint}")
    shown = _as_text(measured)
    if any(isinstance(each, Real) and math.isnan(each) for each in _single_values(measured)):
        reason = "NaN was measured, and a comparison with NaN says nothing"
        raise ClaimFailed(f"claim: {statement}\n  measured: {shown}\n  {reason}")
    if not holds:
        raise ClaimFailed(f"claim does not hold here: {statement}\n  measured: {shown}")
    print(f"✓ claim: {statement}\n  measured: {shown}", flush=True)
    try_to_record("claims", statement, measured=shown)


def _single_values(measured):
    """Yield every single value inside."""
    if hasattr(measured, "tolist"):
        measured = measured.tolist()
    if isinstance(measured, Mapping):
        measured = list(measured.values())
    if isinstance(measured, list | tuple):
        for each in measured:
            yield from _single_values(each)
    else:
        yield measured


def _as_text(measured) -> str:
    if hasattr(measured, "tolist"):
        measured = measured.tolist()
    if isinstance(measured, Mapping):
        return ", ".join(f"{name} {_as_text(value)}" for name, value in measured.items())
    if isinstance(measured, list | tuple):
        return "[" + ", ".join(_as_text(each) for each in measured) + "]"
    if isinstance(measured, Real) and not isinstance(measured, bool | int):
        return f"{float(measured):.4g}"
    return str(measured).replace("\n", " ")
