"""The text behind each picture: tables, and the one sentence that states the finding."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import numpy as np

from stabviz.trace import Trace, signal_of, verdicts
from stabviz.views.points import group_runs, quantiles

PAGE_WIDTH = 96
"""Characters of a line of text that fit beside each other in JupyterLab, in a window of 1280 pixels."""
NARROWEST = 20
"""Characters that a column of text keeps when a table is too wide."""


def table_of(trace: Trace, *, by: str | Sequence[str] | None = None, signal: str = "loss_nats") -> list[dict]:
    """Summarise each group of runs that a fan or an LR curve draws: one dict a group.

    Holds the labels, number of runs, median and 10-90 % of the final value (a non-finite run counts as inf),
    how many runs got which verdict, and the first step at which one went non-finite.

    >>> trace = Trace(steps=[0, 1], signals={"loss_nats": [[4.0, 2.0], [4.0, 3.0]]},
    ...               runs=[{"lr": 1e-3}, {"lr": 1e-2}], config={"chance_nats": 4.0})
    >>> [(row["lr"], row["final median"], row["verdicts"]) for row in table_of(trace, by="lr")]
    [(0.001, 2.0, 'healthy 1'), (0.01, 3.0, 'healthy 1')]
    """
    judged = verdicts(trace) if "loss_nats" in trace and trace.n_steps else None
    final_R = trace.final(signal)
    rows = []
    for group in group_runs(trace, by):
        low, median, high = quantiles(final_R[list(group.runs), None], [0.1, 0.5, 0.9])[:, 0].tolist()
        kinds = Counter(judged[r].kind for r in group.runs if judged)
        dead = [step for r in group.runs if (step := trace.non_finite_step(r)) is not None]
        rows.append(
            {
                **group.labels,
                "runs": len(group.runs),
                "final median": median,
                "10 %": low,
                "90 %": high,
                "verdicts": ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()),
                "first non-finite step": min(dead) if dead else None,
            }
        )
    return rows


def text_table(rows: Sequence[dict], *, most: int = 40, width: float = PAGE_WIDTH) -> str:
    """Set rows of a table in plain text, numbers to four digits, one column under its name; text on the left.

    A page of JupyterLab would break a wide line anywhere: texts are wrapped inside their column, so that a
    line has at most `width` characters; `math.inf` leaves them whole.

    >>> print(text_table([{"lr": 0.001, "loss": 2.34567}, {"lr": 0.1, "loss": float("inf")}]))
       lr   loss
    0.001  2.346
      0.1    inf
    """
    if not rows:
        return "(no rows)"
    keys, cells = table_cells(rows[:most])
    cells = [keys, *cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [any(isinstance(row.get(key), str) for row in rows) for key in keys]
    too_wide = sum(widths) + 2 * (len(widths) - 1) - width
    while too_wide > 0 and any(words):
        widest = max((i for i, is_text in enumerate(words) if is_text), key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        too_wide -= 1
    lines = []
    for row_cells in cells:
        wrapped = [
            wrap(cell, wide) if len(cell) > wide else [cell]
            for cell, wide in zip(row_cells, widths, strict=True)
        ]
        for parts in zip_longest(*wrapped, fillvalue=""):
            aligned = zip(parts, widths, words, strict=True)
            line = (p.ljust(wide) if is_text else p.rjust(wide) for p, wide, is_text in aligned)
            lines.append("  ".join(line).rstrip())
    return "\n".join(lines + ([f"and {len(rows) - most} more rows"] if len(rows) > most else []))


def describe(trace: Trace, *, signal: str = "loss_nats") -> str:
    """State the finding of a picture of `signal` in one sentence, for an aria-label or a caption.

    >>> trace = Trace(steps=[0, 7], signals={"loss_nats": [[4.0, 2.0]]}, runs=[{}])
    >>> describe(trace)
    'Loss of 1 run falls from 4 to 2 nats by step 7.'
    """
    known = signal_of(signal)
    unit = trace.config.get("loss_unit", known.unit) if signal == "loss_nats" else known.unit
    runs = f"{trace.n_runs} run{'s' * (trace.n_runs != 1)}"
    name = known.label[:1].upper() + known.label[1:]
    if not trace.n_steps:
        return f"{name} of {runs}: no step yet."
    dead = [step for r in range(trace.n_runs) if (step := trace.non_finite_step(r)) is not None]
    ends = _first_and_last(trace, signal)
    if ends is None:
        moved = f"{name} of {runs} is never finite"
    else:
        first, last = ends
        # one per cent is no fall: batches differ by more
        verb = "falls" if last < first * (1 - 1e-2) else "rises" if last > first * (1 + 1e-2) else "stays"
        words = f"at {first:.3g}" if verb == "stays" else f"from {first:.3g} to {last:.3g}"
        of = f"{runs} (median)" if trace.n_runs > 1 else runs
        moved = f"{name} of {of} {verb} {words}{' ' + unit if unit else ''} by step {trace.steps[-1]}"
    kinds = Counter(v.kind for v in verdicts(trace)) if "loss_nats" in trace else {}
    bad = [kind for kind in ("diverged", "stalled", "overfit", "spiked") if kind in kinds]
    tail = [f"{kinds[kind]} of {trace.n_runs} {kind}" for kind in bad]
    if dead:
        tail.append(f"first non-finite at step {min(dead)}")
    return moved + ("; " + ", ".join(tail) if tail else "") + "."


def unseen(trace: Trace) -> str:
    """Say what the verdicts of these runs could not see, each thing once; "" where there is no verdict."""
    if "loss_nats" not in trace or not trace.n_steps:
        return ""
    phrases = dict.fromkeys(phrase for judged in verdicts(trace) for phrase in judged.unseen)
    return f"Not seen by the verdict{'s' * (trace.n_runs > 1)}: {'; '.join(phrases)}."


def _first_and_last(trace: Trace, signal: str) -> tuple[float, float] | None:
    """Median over runs of the first and the last finite value."""
    pairs = []
    for values_S in trace[signal]:
        alive = values_S[np.isfinite(values_S)]
        if alive.size:
            pairs.append((float(alive[0]), float(alive[-1])))
    return tuple(np.median(pairs, axis=0).tolist()) if pairs else None


def table_cells(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Return a table's columns and its cells in words: floats to four digits, "-" where a row has none.

    Columns "x", "x low" and "x high" are set as one: 2.74 [2.71, 2.76].
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    ends = {key: (f"{key} low", f"{key} high") for key in keys if {f"{key} low", f"{key} high"} <= {*keys}}
    keys = [key for key in keys if not any(key in pair for pair in ends.values())]
    return keys, [[_cell(row, key, ends.get(key)) for key in keys] for row in rows]


def _cell(row: dict, key: str, ends: tuple[str, str] | None) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if ends:
        low, high = (row[end] for end in ends)
        return f"{value + 0.0:.3g} [{low + 0.0:.3g}, {high + 0.0:.3g}]"  # + 0.0: never -0
    return f"{value:.4g}" if isinstance(value, float) else str(value)
