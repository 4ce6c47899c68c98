"""`claim`: a figure in the prose is computed in its lesson, over several seeds, and asserted."""

import math
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

import numpy as np

from stabviz.course.margins import Bounds
from stabviz.course.progress import try_to_record
from stabviz.files import dumps

LOG = "STABVIZ_CLAIMS"
"""Environment variable: a file to which every claim is added as a line of JSON, and none stops the lesson."""


class ClaimFailed(AssertionError):
    """A claim of a lesson did not hold on this machine."""


def claim(statement: str, holds, *, measured) -> None:
    """Print one line that is the same on every machine, and below it what was measured here.

    `holds` is a comparison by `above`, `below`, `at_least` or `at_most`, several joined by `&`, or a bool for
    what is exact. nbval compares the first line and blanks the second (tests/nbval_sanitize.cfg). Put numbers
    that may differ between machines into `measured` only. `measured` is a number, a text, a sequence, or a
    mapping of names to these. Where STABVIZ_CLAIMS names a file, claims are written there and none raises.

    Raises: ClaimFailed if `holds` is False or a measured number is NaN; ValueError if `holds` is neither bool
            nor comparison, or the statement is empty or of several lines
    Lesson: 00-start-here

    >>> claim("two is more than one", 2 > 1, measured={"two": 2.0, "one": 1.0})
    ✓ claim: two is more than one
      measured: two 2, one 1
    """
    if not isinstance(statement, str) or not statement.strip() or "\n" in statement:
        raise ValueError(f"claim: statement must be one line of text; got {statement!r}")
    if not isinstance(holds, bool | np.bool_ | Bounds):
        hint = "Compare with above(), below(), at_least() or at_most(), or reduce it with .all() and bool()."
        raise ValueError(f"claim: holds must be True or False; got {holds!r}. {hint}")
    shown = _as_text(measured)
    problem = ""
    if any(isinstance(each, Real) and math.isnan(each) for each in _single_values(measured)):
        reason = "NaN was measured, and a comparison with NaN says nothing"
        problem = f"claim: {statement}\n  measured: {shown}\n  {reason}"
    elif not holds:
        problem = f"claim does not hold here: {statement}\n  measured: {shown}"
    if log := os.environ.get(LOG):
        _log(Path(log), statement, holds, shown, problem)
    elif problem:
        raise ClaimFailed(problem)
    print(problem or f"✓ claim: {statement}\n  measured: {shown}", flush=True)
    if not problem:
        try_to_record("claims", statement, measured=shown)


def _log(path: Path, statement: str, holds, shown: str, problem: str) -> None:
    margins = holds.margins if isinstance(holds, Bounds) else ()
    line = {"claim": statement, "held": not problem, "margins": list(margins), "measured": shown}
    with path.open("a", encoding="utf-8") as file:
        file.write(dumps(line) + "\n")


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
